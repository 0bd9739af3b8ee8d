"""What a BERT's tensors are called: in `attnkern.nn`, in Hugging Face's folders, in Google's checkpoints.

In between stand Hugging Face's names without the "bert." that those of models with a head have.
"""

import re

LAYER = {
    "self_attn.out_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "output.LayerNorm",
}
OTHERS = {
    "word_embeddings": "embeddings.word_embeddings",
    "position_embeddings": "embeddings.position_embeddings",
    "token_type_embeddings": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
    "transform": "cls.predictions.transform.dense",
    "transform_norm": "cls.predictions.transform.LayerNorm",
    "next_sentence": "cls.seq_relationship",
    "classifier": "classifier",
    "span": "qa_outputs",
}
ENCODER = ("embeddings.", "encoder.")
HEADS = ("pooler.", "cls.", "classifier.", "qa_outputs.")
# the same tensor under a second name, in files where both were written
TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
GOOGLES = {
    "cls.predictions.bias": "cls/predictions/output_bias",
    "cls.seq_relationship.weight": "cls/seq_relationship/output_weights",
    "cls.seq_relationship.bias": "cls/seq_relationship/output_bias",
    "classifier.weight": "output_weights",
    "classifier.bias": "output_bias",
    "qa_outputs.weight": "cls/squad/output_weights",
    "qa_outputs.bias": "cls/squad/output_bias",
}


def neutral(name: str) -> list[str]:
    """Of a tensor of ours; three names where query, key and value are one tensor here. Others stay as they are."""
    name = name.removeprefix("bert.")
    if name == "word_bias":
        return ["cls.predictions.bias"]
    if match := re.fullmatch(r"layers\.(\d+)\.self_attn\.in_proj_(weight|bias)", name):
        layer, kind = match.groups()
        return [f"encoder.layer.{layer}.attention.self.{part}.{kind}" for part in ("query", "key", "value")]
    prefix, known = "", OTHERS
    if match := re.match(r"layers\.(\d+)\.", name):
        prefix, known, name = f"encoder.layer.{match[1]}.", LAYER, name[match.end() :]
    module, _, kind = name.rpartition(".")
    return [f"{prefix}{known.get(module, module)}.{kind}"]


def from_huggingface(name: str) -> str:
    """The oldest files say gamma and beta."""
    return _norm_from_google(name.removeprefix("bert."))


def from_google(name: str) -> str:
    for ours, googles in GOOGLES.items():
        if name == googles:
            return ours
    name = re.sub(r"layer_(\d+)", r"layer.\1", name.removeprefix("bert/").replace("/", "."))
    return re.sub(r"_embeddings$", r"\g<0>.weight", re.sub(r"\.kernel$", ".weight", _norm_from_google(name)))


def to_google(name: str) -> str:
    """Of a neutral name. What ends in "kernel" is the transpose of a weight."""
    if name in GOOGLES:
        return GOOGLES[name]
    name = re.sub(r"layer\.(\d+)", r"layer_\1", name)
    name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    name = re.sub(r"_embeddings\.weight$", "_embeddings", name)
    name = re.sub(r"\.weight$", ".kernel", name).replace(".", "/")
    return name if name.startswith("cls/") else f"bert/{name}"


def _norm_from_google(name: str) -> str:
    return re.sub(r"gamma$", "weight", re.sub(r"beta$", "bias", name))
