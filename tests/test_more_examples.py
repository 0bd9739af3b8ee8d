"""The examples caption.py, pretrain_bert.py and answer_squad.py: their data exactly, and a short run of each."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

for library in ("matplotlib", "rich", "safetensors", "tokenizers"):
    pytest.importorskip(library)
EXAMPLES = str(Path(__file__).parents[1] / "examples")
sys.path.insert(0, EXAMPLES)
import answer_squad  # noqa: E402
import caption  # noqa: E402
import pretrain_bert  # noqa: E402

sys.path.remove(EXAMPLES)
from attnkern.nn import BertForPreTraining, WordPiece  # noqa: E402


def test_captions_say_what_is_there():
    torch.manual_seed(0)
    pictures, captions = caption.pictures(200)
    fields = pictures.unflatten(2, (3, -1)).unflatten(4, (3, -1)).mean((1, 3, 5))
    for field, words in zip(fields, captions):
        said = [caption.WORDS[word] for word in words if word]
        assert len(said) == 2 * (field > 0.05).sum() and words[len(said) :].eq(0).all()
        assert all(word in caption.COLOURS for word in said[::2]) and all(word in caption.SHAPES for word in said[1::2])


@pytest.mark.parametrize("kind", caption.KINDS)
def test_captions_are_learned_and_resumed(kind, tmp_path):
    model = caption.train(kind, 60, tmp_path / "whole")
    pictures, right = caption.pictures(64)
    with torch.no_grad():
        losses, looked = model(pictures, right)
    assert losses.mean() < 1.6 < torch.tensor(len(caption.WORDS)).log()  # a guess costs the latter
    torch.testing.assert_close(looked.sum(-1), torch.ones(64, caption.LONGEST))
    again = caption.train(kind, 60, tmp_path / "whole")  # from the checkpoint alone
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    caption.train(kind, 62, tmp_path / "whole")  # more steps than were meant at first


def test_masks():
    torch.manual_seed(0)
    wordpiece = WordPiece.train([" ".join(f"w{n}" for n in range(50))], max_length=300)
    ids = torch.randint(5, wordpiece.tokenizer.get_vocab_size(), (400, 100))
    there = torch.arange(100) < torch.randint(4, 101, (400, 1))
    new, places, words = pretrain_bert.mask(ids.clone(), there, wordpiece)
    chosen = words != pretrain_bert.IGNORED
    wanted = (0.15 * there.sum(1)).round().clamp(1, 20)
    assert torch.equal(chosen.sum(1).float(), wanted)
    assert torch.equal(ids.gather(1, places)[chosen], words[chosen]) and there.gather(1, places)[chosen].all()
    changed = torch.zeros_like(there).scatter(1, places, chosen)
    assert torch.equal(new[~changed], ids[~changed])
    now, was = new.gather(1, places)[chosen], words[chosen]
    shares = (now == wordpiece.tokenizer.token_to_id("[MASK]")).float().mean(), (now == was).float().mean()
    assert abs(shares[0] - 0.8) < 0.02 and abs(shares[1] - 0.1) < 0.02


def test_next_sentences():
    """Documents whose words are numbers that go up by 1: what follows does, what is random does not."""
    torch.manual_seed(0)
    documents = [[list(range(100 * d + 4 * s, 100 * d + 4 * s + 4)) for s in range(10)] for d in range(5)]
    found = [pretrain_bert.pair(documents, 24) for _ in range(400)]
    for first, second, is_random in found:
        assert first and second and len(first) + len(second) <= 24
        assert (first[-1] + 1 == second[0]) != is_random and (first[0] // 100 != second[0] // 100) == is_random
    assert 150 < sum(is_random for *_, is_random in found) < 250


def test_pretraining_learns(tmp_path, capsys):
    options = pretrain_bert.argparse.Namespace(
        text=None, out=tmp_path, model=None, config=None, steps=150, rate=None, length=32, skip_bad=False, seed=0
    )
    pretrain_bert.pretrain(options)
    found = re.search(r"held out, after 150 steps: .* MLM right (\S+), NSP right (\S+)", capsys.readouterr().out)
    assert float(found[1].rstrip(",")) > 2 / 96 and float(found[2]) > 0.9  # chance: 1 / 96 and 0.5
    assert BertForPreTraining.from_folder(tmp_path).bert.config.hidden_size == 64


def squad(**change):
    question = {"id": "q1", "question": "who?", "answers": [{"text": "Ann Lee", "answer_start": 4}]} | change
    return {"data": [{"paragraphs": [{"context": "It, Ann Lee said.", "qas": [question, {**question, "id": "q2"}]}]}]}


def test_windows_keep_every_answer():
    """Wherever an answer stands, a window holds it whole, and the offsets lead back to its letters."""
    context = " ".join(f"word{n % 7}" for n in range(60))
    wordpiece = WordPiece.train([context, "which is it"], max_length=128)
    for n in range(60):
        begin = sum(len(f"word{k % 7}") + 1 for k in range(n))
        asked = answer_squad.Question("1", "which is it", context, [(begin, f"word{n % 7}")])
        windows = answer_squad.windows_of([asked], wordpiece, 32, 10)
        assert all(len(window.ids) <= 32 for window in windows)
        held = [window for window in windows if window.target != (0, 0)]
        assert held
        for window in held:
            first, last = (place - window.first for place in window.target)
            assert (window.offsets[first][0], window.offsets[last][1]) == (begin, begin + len(f"word{n % 7}"))


def test_an_answer_without_tokens_is_not_taught_as_none():
    """Nor is one that is longer than a window; where there is none, that is learned."""
    context = "it was \u200b here " + "word " * 40
    wordpiece = WordPiece.train([context, "which is it"], max_length=128)
    answers = [[(7, "\u200b")], [(15, context[15:].strip())], [(3, "was")], []]
    asked = [answer_squad.Question(str(n), "which is it", context, found) for n, found in enumerate(answers)]
    windows = answer_squad.windows_of(asked, wordpiece, 32, 10)
    with pytest.warns(UserWarning, match="2 of 4 questions left out: no window holds their answer"):
        left = answer_squad.to_learn_from(asked, windows)
    assert left == [window for window in windows if window.number in (2, 3)]
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no window holds an answer"):
        answer_squad.to_learn_from(asked[:2], [window for window in windows if window.number < 2])


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("{", "is not in SQuAD's format"),
        (json.dumps({"data": 3}), "data must be a list, got '3'"),
        (json.dumps(squad(answers=[{"text": "Bob", "answer_start": 4}])), "q1: the answer 'Bob' does not stand at 4"),
        (json.dumps(squad(answers=[])), "question q1: has no answer, and is_impossible"),
        (json.dumps({"data": [{"paragraphs": [{"context": "c", "qas": [[]]}]}]}), r"qas\[0\]: id must be a str"),
    ],
)  # fmt: skip
def test_malformed_squad(file, message, tmp_path):
    path = tmp_path / "dev.json"
    path.write_text(file)
    with pytest.raises(ValueError, match=message):
        answer_squad.read(path, skip_bad=False)


def test_squad_scores_and_skips(tmp_path):
    path = tmp_path / "dev.json"
    content = squad()
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] = 5
    content["data"][0]["paragraphs"][0]["qas"][1]["answers"] = [{"text": "Ann Lee", "answer_start": 4}]
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="1 skipped: .*question q1: the answer 'Ann Lee' does not stand at 5"):
        (question,) = answer_squad.read(path, skip_bad=True)
    assert question.id == "q2" and question.answers == [(4, "Ann Lee")]
    assert answer_squad.exact_and_f1("the Ann, Lee!", ["Ann Lee"]) == (1.0, 1.0)
    assert answer_squad.exact_and_f1("Ann", ["Ann Lee", "Bob"]) == (0.0, pytest.approx(2 / 3))
    assert answer_squad.exact_and_f1("", []) == (1.0, 1.0) and answer_squad.exact_and_f1("x", []) == (0.0, 0.0)


def test_squad_without_an_answer(tmp_path, capsys):
    """Little is learned, all is written, and what has no answer is drawn too."""
    learned = {"train": tmp_path / "train.json", "dev": tmp_path / "dev.json"}
    learned["train"].write_text(json.dumps(squad()))
    learned["dev"].write_text(json.dumps(squad(answers=[], is_impossible=True)))
    others = {"model": None, "steps": 2, "length": None, "stride": None, "skip_bad": False, "seed": 0}
    answer_squad.answer_squad(answer_squad.argparse.Namespace(**learned, **others, out=tmp_path))
    assert "2 questions without an answer: exact" in capsys.readouterr().out
    assert json.loads((tmp_path / "predictions.json").read_text()).keys() == {"q1", "q2"}
    best = json.loads((tmp_path / "nbest.json").read_text())["q1"]
    assert sum(answer["probability"] for answer in best) == pytest.approx(1)
    assert (tmp_path / "answer_squad.png").stat().st_size > 10_000


def test_squad_is_learned(tmp_path, capsys):
    options = {"train": None, "dev": None, "model": None, "length": 40, "stride": None, "skip_bad": False, "seed": 0}
    answer_squad.answer_squad(answer_squad.argparse.Namespace(**options, steps=250, out=tmp_path))
    exact = re.search(r"all 500: exact (\S+)%", capsys.readouterr().out)[1]
    assert float(exact) > 80
