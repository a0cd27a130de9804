"""The plugin with the real llm package, on the model that comes with spqt-ti."""

from __future__ import annotations

import dataclasses

import pytest

llm = pytest.importorskip("llm", reason="llm is not installed: pip install llm")
import llm_spqt  # noqa: E402  after the skip
from llm.plugins import load_plugins, pm  # noqa: E402

from spqt_ti.generation.tokenizer import Tokenizer  # noqa: E402

COMMON = {"max_tokens": 8, "threads": 1, "context": 128}
TURNS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}assistant:{% endif %}"
TEXT = "The state of the Union is"


@pytest.fixture(scope="module", autouse=True)
def _registered():
    load_plugins()  # the installed plugin registers itself on llm's first question, too late for the line below
    if pm.get_name(llm_spqt) is None:
        pm.register(llm_spqt, name="llm_spqt")
    yield
    llm_spqt.loaded.cache_clear()


def ask(text: str = TEXT, **options):
    response = llm.get_model("spqt/reglu-tiny").prompt(text, **{**COMMON, **options})
    return response.text(), response


def test_known_models_are_there() -> None:
    ids = {model.model_id for model in llm.get_models()}
    assert {"spqt", "spqt/smollm2-135m", "spqt/reglu-tiny"} <= ids


def test_answers_as_the_package_does() -> None:
    text, response = ask()
    model = llm_spqt.loaded("reglu-tiny", COMMON["context"], COMMON["threads"])
    expected = model.generate(TEXT, max_new_tokens=8)
    assert text == expected.text
    assert response.usage().input == expected.stats.prompt_tokens
    assert response.response_json["finish_reason"] == expected.finish_reason
    named = llm.get_model("spqt").prompt(TEXT, model="reglu-tiny", **COMMON)
    assert named.text() == text
    assert "".join(llm.get_model("spqt/reglu-tiny").prompt(TEXT, **COMMON)) == text


def test_options_reach_the_model() -> None:
    dense, _ = ask()
    _, response = ask(sparsity="0.5")  # as the command line hands it over
    assert response.response_json["realised_sparsity"] > 0.3
    assert ask(temperature=1.5, seed=3)[0] == ask(temperature=1.5, seed=3)[0]
    assert ask(temperature=1.5, seed=3)[0] != dense
    assert ask()[0] == dense  # dense again


def test_a_conversation_is_refused_without_a_template() -> None:
    with pytest.raises(llm.ModelError, match="chat template"):
        llm.get_model("spqt/reglu-tiny").prompt(TEXT, system="Be brief.", **COMMON).text()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sparsity": 1.5}, "sparsity"), ({"sparsity": "nowhere.json"}, "nowhere.json"), ({"top_p": 2.0}, "top_p")],
)
def test_errors_are_one_line(options, message) -> None:
    with pytest.raises(llm.ModelError, match=message):
        ask(**options)


def test_a_conversation(monkeypatch) -> None:
    """What the model sees is the whole talk in its template, and the next turn computes new tokens only."""
    model = llm_spqt.loaded("reglu-tiny", COMMON["context"], COMMON["threads"])
    container = dataclasses.replace(model.container, chat_template=TEMPLATE)
    monkeypatch.setattr(model, "container", container)
    monkeypatch.setattr(model, "tokenizer", Tokenizer(container.tokenizer_json, container.config, TEMPLATE))
    talk = llm.get_model("spqt/reglu-tiny").conversation()
    first = talk.prompt("Hello.", system="Be brief.", **COMMON)
    answer = first.text()
    second = talk.prompt("And you?", **COMMON)
    second.text()
    seen = llm_spqt.messages(second.prompt)
    assert [message["role"] for message in seen] == ["system", "user", "assistant", "user"]
    assert seen[2]["content"] == answer
    assert second.response_json["prompt_tokens_reused"] > first.usage().input // 2
