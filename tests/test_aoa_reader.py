"""The Attention-over-Attention reader: padding has no influence, and it learns what a plain mean does not."""

import runpy
from pathlib import Path

import pytest
import torch

from attnkern.nn import AoAReader

EXAMPLE = Path(__file__).parents[1] / "examples" / "cloze_reader.py"


def test_words_add_up_and_padding_has_no_influence():
    torch.manual_seed(0)
    reader = AoAReader(12, embed_dim=6, hidden=5)
    document, question = torch.randint(1, 12, (3, 20)), torch.randint(1, 12, (3, 4))
    probability = reader(document, question)
    attention = reader.attend(document, question)
    torch.testing.assert_close(probability.sum(1), torch.ones(3))
    torch.testing.assert_close(probability[1, 7], attention[1][document[1] == 7].sum())
    padded = [torch.nn.functional.pad(words, (0, 3)) for words in (document, question)]
    torch.testing.assert_close(reader(*padded), probability)
    padded[0][2] = 0
    assert (reader(*padded)[2] == 0).all()
    torch.testing.assert_close(reader(*padded)[:2], probability[:2])
    by_name = AoAReader(12, embed_dim=6, hidden=5, backend="reference")
    by_name.load_state_dict(reader.state_dict())
    torch.testing.assert_close(by_name(document, question), probability)


def test_it_learns_surer_than_a_mean():
    page = runpy.run_path(str(EXAMPLE))
    loss, right = page["test"](page["train"]("attention over attention", 70)[0])
    mean_loss, _ = page["test"](page["train"]("mean over the question", 70)[0])
    assert right >= 0.99 and loss < 0.03 and mean_loss > 2 * loss


def test_the_page_draws(monkeypatch, capsys, tmp_path):
    picture = tmp_path / "cloze.png"
    monkeypatch.setattr("sys.argv", ["cloze_reader.py", "--steps", "3", "--out", str(picture)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "attention over attention" in capsys.readouterr().out and picture.stat().st_size > 20_000


@pytest.mark.parametrize("name", ["document", "question"])
def test_no_words(name):
    words = {"document": torch.ones(2, 3, dtype=torch.int64), "question": torch.ones(2, 3, dtype=torch.int64)}
    words[name] = words[name][:, :0]
    with pytest.raises(ValueError, match=rf"{name} must be word ids .* got \(2, 0\)"):
        AoAReader(5, 4, 4)(**words)
