"""The public interface: what `load` takes, what it keeps on disk, and what a loaded model answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_models import random_weights, tiny_config, write_gguf, write_huggingface

import spqt_ti
from spqt_ti import api, backend
from spqt_ti.api import Model
from spqt_ti.container import Container
from spqt_ti.convert.quantize import quantize
from spqt_ti.errors import BackendError, CheckpointError, ContainerError, GenerationError, PolicyError
from spqt_ti.generation.sampling import Sampling
from spqt_ti.sparsity.methods import uniform
from spqt_ti.sparsity.methods.uniform import Calibration
from spqt_ti.sparsity.policy import SparsityPolicy

CONFIG = tiny_config()
TOKENS = [5, 17, 42, 99, 256, 7]
TEXT = "The quick brown fox jumps over the lazy dog. " * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`source`, a Hugging Face directory, and `quantized`, made from it; not to be changed."""
    backend.start()  # before a test moves the cache folder, where compiled kernels lie
    folder = tmp_path_factory.mktemp("models")
    write_huggingface(folder / "source", CONFIG, random_weights(CONFIG))
    quantize(folder / "source", folder / "quantized", progress=False)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SPQT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(folder, tmp_path, cache) -> Path:
    return Path(shutil.copytree(folder / "source", tmp_path / "source"))


@pytest.fixture
def path(folder, tmp_path, cache) -> Path:
    """A container of its own: calibrations are kept beside it."""
    return Path(shutil.copytree(folder / "quantized", tmp_path / "quantized"))


@pytest.fixture
def model(loaded) -> Iterator[Model]:
    """One model for all that leave it as it was."""
    loaded.apply(None)
    yield loaded
    loaded.apply(None)


@pytest.fixture(scope="module")
def loaded(folder) -> Model:
    return load(folder / "quantized")


@pytest.fixture
def calibrated(monkeypatch) -> list[str]:
    """The texts that were calibrated on, each on its first tokens only."""
    texts, calibrate = [], uniform.calibrate

    def counting(llama, model, text, tokens):
        texts.append(text)
        return calibrate(llama, model, text, tokens[:100])

    monkeypatch.setattr(uniform, "calibrate", counting)
    return texts


@pytest.fixture
def quantized(monkeypatch) -> list[str]:
    """The sources that were quantised."""
    sources = []

    def counting(source, destination, **options):
        sources.append(str(source))
        return quantize(source, destination, progress=False, **options)

    monkeypatch.setattr(api, "quantize", counting)
    return sources


def load(path, **options) -> Model:
    return spqt_ti.load(path, **({"threads": 1} | options))


def policy_for(model: Model, threshold: float = 0.5) -> SparsityPolicy:
    return SparsityPolicy("mine", 0.4, np.full((2, 4), threshold, np.float32), model.container.fingerprint)


def same(one: Container, other: Container) -> bool:
    return one.fingerprint == other.fingerprint


# Finding a model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
def test_a_container_is_opened_in_place(path, kind, quantized):
    model = load(kind(path))
    assert model.container.path == path
    assert model.policy is None
    assert not quantized


def test_a_hugging_face_directory_is_quantised_once(source, path, cache, quantized):
    made = api.open_quantized(source)
    assert made.path.parent == cache / "quantized"
    assert same(made, Container.open(path))
    assert api.open_quantized(str(source)).path == made.path
    assert len(quantized) == 1


def test_a_gguf_file_is_quantised_once(tmp_path, cache, quantized):
    file = write_gguf(tmp_path / "tiny.gguf", CONFIG, random_weights(CONFIG))
    made = load(file).container
    assert made.path.name.startswith("tiny-zigzag-q4_k-")
    assert api.open_quantized(file).path == made.path
    assert len(quantized) == 1


def test_a_source_that_changed_is_quantised_again(source, quantized):
    first = api.open_quantized(source)
    write_huggingface(source, CONFIG, random_weights(CONFIG, seed=1))
    os.utime(source / "model.safetensors", ns=(1, 1))  # clocks of file systems are coarse
    second = api.open_quantized(source)
    assert first.path != second.path
    assert not same(first, second)
    assert len(quantized) == 2


@pytest.mark.parametrize("damage", ["cut", "missing", "manifest"])
def test_a_damaged_container_in_the_cache_is_made_again(source, quantized, damage):
    made = api.open_quantized(source)
    shard = sorted(made.path.glob("*.safetensors"))[0]
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-40])
    elif damage == "missing":
        shard.unlink()
    else:
        (made.path / "spqt.json").write_text("{")
    again = api.open_quantized(source)
    assert len(quantized) == 2
    assert same(again, made)
    assert same(Container.open(again.path), made)


def test_another_process_that_was_faster(source, monkeypatch):
    def beaten(source, destination, **options):
        quantize(source, destination, progress=False)
        raise ContainerError("in the way")

    monkeypatch.setattr(api, "quantize", beaten)
    assert api.open_quantized(source).path.is_dir()


def test_a_cache_that_cannot_be_written(source, monkeypatch):
    def full(*_, **__):
        raise ContainerError("disk full")

    monkeypatch.setattr(api, "quantize", full)
    with pytest.raises(ContainerError, match="disk full"):
        api.open_quantized(source)


def test_a_damaged_container_elsewhere_is_left_alone(path, quantized):
    """It is the user's: named, not replaced."""
    (path / "spqt.json").write_text("{")
    with pytest.raises(ContainerError, match=r"spqt\.json"):
        load(path)
    assert (path / "spqt.json").read_text() == "{"
    assert not quantized


@pytest.mark.parametrize("name", ["no-such-model", "./nowhere"])
def test_no_such_model(name, cache):
    with pytest.raises(CheckpointError, match=name.strip("./")):
        load(name)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "cuda"}, BackendError, "cuda"),
        ({"threads": 0}, BackendError, "threads must be"),
        ({"context": 0}, GenerationError, "context must be between 1 and 256"),
        ({"context": 257}, GenerationError, "context must be between 1 and 256"),
    ],
)
def test_settings_out_of_range(path, options, error, message):
    with pytest.raises(error, match=message):
        load(path, **options)


# Sparsity -------------------------------------------------------------------------------------------------------------


def test_a_level_is_calibrated(path, calibrated):
    model = load(path, sparsity=0.4)
    assert calibrated == [uniform.sample_text()]
    assert (model.policy.method, model.policy.sparsity) == ("uniform", 0.4)
    np.testing.assert_array_equal(model.llama.thresholds, model.policy.thresholds)
    assert (model.llama.thresholds > 0).all()


@pytest.mark.parametrize("level", [0, 0.0])
def test_level_zero_is_dense_and_not_calibrated(path, calibrated, level):
    model = load(path, sparsity=level)
    assert model.policy is None
    assert not model.llama.thresholds.any()
    assert not calibrated


@pytest.mark.parametrize("form", ["policy", "path", "str"])
def test_a_policy_and_its_file(path, model, tmp_path, calibrated, form):
    policy, file = policy_for(model), tmp_path / "policy.json"
    file.write_text(policy.to_json())
    made = load(path, sparsity={"policy": policy, "path": file, "str": str(file)}[form])
    assert made.policy.to_json() == policy.to_json()
    np.testing.assert_array_equal(made.llama.thresholds, policy.thresholds)
    assert not calibrated


@pytest.mark.parametrize(
    ("level", "hint"), [(-0.1, ""), (0.995, ""), (1.0, ""), (40, "; did you mean 0.4"), (100, ""), (float("nan"), "")]
)
def test_levels_out_of_range(path, level, hint):
    with pytest.raises(PolicyError, match=f"between 0 and 0.99, not {level}{hint}"):
        load(path, sparsity=level)


def test_policy_files_that_do_not_fit(path, model, tmp_path):
    with pytest.raises(PolicyError, match=r"nowhere\.json"):
        load(path, sparsity=tmp_path / "nowhere.json")
    other = SparsityPolicy("mine", 0.4, np.zeros((2, 4), np.float32), "another")
    with pytest.raises(PolicyError, match="made for model another"):
        load(path, sparsity=other)


def test_a_refused_policy_leaves_the_one_in_force(model):
    policy = policy_for(model)
    model.apply(policy)
    with pytest.raises(PolicyError, match="layers"):
        model.apply(SparsityPolicy("mine", 0.9, np.ones((3, 4), np.float32), model.container.fingerprint))
    assert model.policy is policy
    assert (model.llama.thresholds == 0.5).all()


def test_apply_none_is_dense_again(model):
    dense = model.logits(TOKENS, mode="decode")
    model.apply(policy_for(model))
    sparse = model.logits(TOKENS, mode="decode")
    model.apply(None)
    assert model.policy is None
    assert not np.array_equal(dense, sparse)
    np.testing.assert_array_equal(model.logits(TOKENS, mode="decode"), dense)


# Calibrations on disk -------------------------------------------------------------------------------------------------


def test_a_calibration_is_kept_beside_the_model(path, cache, calibrated):
    first = load(path, sparsity=0.4)
    kept = Calibration.load(path / "calibration.json")
    assert kept.model == first.container.fingerprint
    second = load(path, sparsity=0.4)
    assert len(calibrated) == 1
    np.testing.assert_allclose(second.policy.thresholds, first.policy.thresholds, rtol=1e-6)
    assert not (cache / "calibrations").exists()


def test_one_calibration_serves_every_level(path, calibrated):
    low, high = (load(path, sparsity=level).policy.thresholds for level in (0.2, 0.8))
    assert len(calibrated) == 1
    assert (low < high).all()


@pytest.mark.parametrize("cache_works", [True, False])
def test_beside_a_model_that_cannot_be_written(path, cache, calibrated, monkeypatch, cache_works):
    """Into the cache folder instead; where that fails too, the model works all the same."""
    save = Calibration.save

    def refuse(self, place):
        if place.parent == path or not cache_works:
            raise PermissionError(13, "Permission denied")
        save(self, place)

    monkeypatch.setattr(Calibration, "save", refuse)
    model = load(path, sparsity=0.4)
    assert model.policy.sparsity == 0.4
    place = cache / "calibrations" / model.container.fingerprint / "calibration.json"
    assert place.is_file() == cache_works
    load(path, sparsity=0.4)
    assert len(calibrated) == (1 if cache_works else 2)
    assert not (path / "calibration.json").exists()


def test_another_text_has_another_file(path, tmp_path, calibrated):
    (tmp_path / "mine.txt").write_text(TEXT)
    for _ in range(2):
        model = load(path, sparsity=0.4, calibration_text=tmp_path / "mine.txt")
    assert calibrated == [TEXT]
    (found,) = path.glob("calibration*.json")
    assert found.name.startswith("calibration-")
    assert Calibration.load(found).text_sha256 == model.policy.calibration["text_sha256"]
    load(path, sparsity=0.4)
    assert calibrated == [TEXT, uniform.sample_text()]


@pytest.mark.parametrize("field", ["model", "text_sha256"])
def test_a_calibration_of_something_else_is_replaced(path, calibrated, field):
    load(path, sparsity=0.4)
    file = path / "calibration.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {field: "another"}))
    load(path, sparsity=0.4)
    assert len(calibrated) == 2
    assert json.loads(file.read_text()) == kept


def test_a_damaged_calibration_is_named(path, calibrated):
    (path / "calibration.json").write_text("{")
    with pytest.raises(PolicyError, match=r"calibration\.json: not a calibration .* delete it"):
        load(path, sparsity=0.4)
    assert not calibrated


@pytest.mark.parametrize(("context", "kept"), [(64, False), (512, True), (None, True)])
def test_a_short_context_does_not_keep_its_calibration(tmp_path, cache, monkeypatch, context, kept):
    """Shorter windows make other thresholds, which a later load with the whole context must not find."""
    made = np.ones((1, 4, 100), np.float32)
    monkeypatch.setattr(uniform, "calibrate", lambda llama, model, *_: Calibration(model, "ff", 9, made))
    config = tiny_config(max_position_embeddings=1024, num_hidden_layers=1)
    source = write_huggingface(tmp_path / "source", config, random_weights(config))
    container = quantize(source, tmp_path / "quantized", progress=False)
    model = load(container.path, sparsity=0.4, context=context)
    assert (model.llama.thresholds == 1).all()
    assert (container.path / "calibration.json").exists() == kept
    assert not (cache / "calibrations").exists()


def test_a_short_model_keeps_its_calibration(path, calibrated):
    """Its context is all that it has, so nothing better will come."""
    load(path, sparsity=0.4)
    assert (path / "calibration.json").exists()
    assert CONFIG.max_position_embeddings < uniform.WINDOW


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x80"])
def test_calibration_texts_that_cannot_be_read(path, tmp_path, content):
    if content is not None:
        (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(PolicyError, match=r"mine\.txt: cannot be read"):
        load(path, sparsity=0.4, calibration_text=tmp_path / "mine.txt")


def test_a_calibration_text_without_tokens(path, tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(PolicyError, match="the text is empty"):
        load(path, sparsity=0.4, calibration_text=tmp_path / "mine.txt")
    assert not list(path.glob("calibration*"))


# Logits ---------------------------------------------------------------------------------------------------------------


def test_logits_of_every_token(model):
    prefill, decode = model.logits(TOKENS), model.logits(TOKENS, mode="decode")
    assert prefill.shape == decode.shape == (len(TOKENS), CONFIG.vocab_size)
    assert prefill.dtype == decode.dtype == np.float32
    np.testing.assert_allclose(prefill, decode, atol=2e-2 * np.abs(prefill).max())
    assert not np.array_equal(prefill[0], prefill[1])


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_logits_start_over_each_time(model, mode):
    first = model.logits(TOKENS, mode=mode)
    model.logits(TOKENS[::-1], mode=mode)
    np.testing.assert_array_equal(model.logits(TOKENS, mode=mode), first)
    # A token does not see what follows it.
    np.testing.assert_array_equal(model.logits(TOKENS[:3], mode="decode"), model.logits(TOKENS, mode="decode")[:3])


def test_only_decoding_is_sparse(model):
    before = model.logits(TOKENS)
    model.apply(policy_for(model))
    np.testing.assert_array_equal(model.logits(TOKENS), before)


@pytest.mark.parametrize("mode", ["prefill", "decode"])
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "no tokens"),
        ([320], "token id 320 is outside the vocabulary of 320"),
        ([3, -1], "token id -1"),
        ([7] * 257, "257 tokens do not fit the context of 256"),
    ],
)
def test_logits_of_bad_sequences(model, mode, tokens, message):
    with pytest.raises(GenerationError, match=message):
        model.logits(tokens, mode=mode)


@pytest.mark.parametrize("mode", ["sparse", "", None, "Prefill"])
def test_logits_of_an_unknown_mode(model, mode):
    with pytest.raises(GenerationError, match=f'"prefill" or "decode", not {mode!r}'):
        model.logits(TOKENS, mode=mode)


# Arguments of another type --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["prefill", "decode"])
@pytest.mark.parametrize(
    "tokens",
    [
        *([1.0, 2.0], [1, 2.5], np.array([1.0, 2.0]), [True, False], [1, None], [10**30]),
        *([[1, 2]], np.ones((2, 2), int), [1, [2]], {1, 2}, b"ab", bytearray(b"ab"), "ab", 5, None),
    ],
    ids=repr,
)
def test_ids_that_are_no_ids(model, mode, tokens):
    with pytest.raises(GenerationError, match="token id"):
        model.logits(tokens, mode=mode)


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda ids: np.array(ids, np.uint8), range])
def test_ids_of_every_kind(model, kind):
    ids = [5, 6, 7]
    got = model.logits(range(5, 8) if kind is range else kind(ids))
    np.testing.assert_array_equal(got, model.logits(ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 1.5}, "max_new_tokens must be a whole number of 1 or more, not 1.5"),
        ({"max_new_tokens": "8"}, "max_new_tokens must be a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number"),
        ({"max_new_tokens": None}, "max_new_tokens must be a whole number"),
        ({"top_k": 2.5, "temperature": 1}, "top_k must be a whole number of 1 or more, not 2.5"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"temperature": True}, "temperature must be a number"),
        ({"top_p": "x"}, "top_p must be a number"),
        ({"heat": 1}, "there is no argument 'heat'; of sampling there are temperature, top_k"),
        ({"sampling": 0.5}, "sampling must be a Sampling, not float"),
        ({"sampling": Sampling(), "seed": 1}, "give sampling or its fields"),
        ({"prompt": b"hello"}, "the prompt must be a str, not bytes; decode it first"),
        ({"prompt": "caf\udce9"}, "the prompt is not valid UTF-8 text"),
        ({"prompt": [5, 6]}, "a chat message needs 'role' and 'content', got 5"),
        ({"prompt": [{"role": "user"}]}, "a chat message needs 'role' and 'content'"),
        ({"prompt": []}, "the conversation is empty"),
        ({"stop": ["a", ""]}, "a stop string has 1 to 4096 characters, not 0"),
        ({"prompt": None}, "the prompt must be a str"),
    ],
    ids=str,
)
def test_requests_of_another_type(model, options, message):
    """Said by the call itself, not by the first step."""
    options = {"prompt": "hello"} | options
    for ask in (model.stream, model.generate):
        with pytest.raises(GenerationError, match=message):
            ask(**options)


def test_sampling_by_name_and_as_one_object(model):
    one = model.generate("hello", max_new_tokens=12, temperature=0.9, top_k=9, seed=4)
    assert model.generate("hello", max_new_tokens=12, sampling=Sampling(0.9, 9, seed=4)).token_ids == one.token_ids


@pytest.mark.parametrize(
    ("options", "error"),
    [
        *(({"context": bad}, GenerationError) for bad in (10.5, "64", True, [64])),
        *(({"threads": bad}, BackendError) for bad in (1.0, "1", True)),
        *(({"sparsity": bad}, PolicyError) for bad in (None, [0.4], True)),
        *(({"path_or_name": bad}, CheckpointError) for bad in (None, 5, b"model")),
    ],
    ids=str,
)
def test_settings_of_another_type(path, options, error):
    options = {"path_or_name": path, "threads": 1} | options
    with pytest.raises(error, match=r"must be|is a path or a name"):
        spqt_ti.load(**options)


def test_arguments_are_checked_before_anything_is_quantised(source, quantized):
    for options in (
        {"sparsity": 40},
        {"threads": 1.5},
        {"context": "x"},
        {"backend": "abacus"},
        {"sparsity": "no.json"},
    ):
        with pytest.raises(spqt_ti.SpqtError):
            load(source, **options)
    assert not quantized


def test_only_the_first_argument_goes_by_place(model):
    for call in (lambda: spqt_ti.load("x", "cpu"), lambda: model.stream("x", 4), lambda: model.generate("x", 4)):
        with pytest.raises(TypeError, match="positional"):
            call()


# Chat -----------------------------------------------------------------------------------------------------------------


def test_chat_wraps_the_prompt_in_the_template(model):
    plain, chat = model.generate("hello", max_new_tokens=1), model.generate("hello", max_new_tokens=1, chat=True)
    wrapped = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    expected = model.tokenizer.encode(wrapped, parse_special=True)
    assert chat.stats.prompt_tokens == len(expected)
    assert plain.stats.prompt_tokens < chat.stats.prompt_tokens


def test_chat_without_a_template(tmp_path, cache):
    source = write_huggingface(tmp_path / "source", CONFIG, random_weights(CONFIG), chat_template=None)
    model = load(source)
    with pytest.raises(GenerationError, match="no chat template"):
        model.generate("hello", max_new_tokens=4, chat=True)
    assert model.generate("hello", max_new_tokens=1).token_ids  # plain text still works


# The package ----------------------------------------------------------------------------------------------------------


def test_quantising_elsewhere(folder, tmp_path):
    """What another process makes is what this one makes; its error is this one's."""
    made = api.quantize_elsewhere(folder / "source", tmp_path / "made")
    assert made.fingerprint == Container.open(folder / "quantized").fingerprint
    with pytest.raises(ContainerError, match=r"nowhere: cannot be quantised: .*nowhere"):
        api.quantize_elsewhere(tmp_path / "nowhere", tmp_path / "not made")


def test_importing_the_package_does_not_start_taichi():
    """A second that `spqt --help` should not take."""
    code = "import sys, spqt_ti; print('taichi' in sys.modules); spqt_ti.load; print('taichi' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize("name", spqt_ti.__all__)
def test_every_public_name_is_there(name):
    assert getattr(spqt_ti, name) is not None


def test_unknown_attributes():
    with pytest.raises(AttributeError, match="module 'spqt_ti' has no attribute 'lode'"):
        spqt_ti.lode  # noqa: B018
