"""Programs that people use already: the openai package, LangChain, llm and curl."""

import json
import os
import shutil
import subprocess
import sys

import openai
import pytest

from tests.serve.conftest import valley

QUESTION, ANSWER = "What is the stone of Arvid Abbott?", "ruby"
ASKED = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def own(server):
    """OpenAI's client, pointed at us."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_openai_whole(own):
    assert {each.id for each in own.models.list()} >= {"demo", "valley"}
    found = own.chat.completions.create(model="valley", messages=ASKED, logprobs=True)
    assert ANSWER in found.choices[0].message.content
    assert found.usage.prompt_tokens_details.cached_tokens > 100
    assert len(found.choices[0].logprobs.content) == found.usage.completion_tokens
    found = own.completions.create(model="demo", prompt="The stone of", max_tokens=3)
    assert found.usage.completion_tokens <= 3 and found.choices[0].text


def test_openai_in_pieces(own):
    options = {"include_usage": True}
    with own.chat.completions.create(
        model="valley", messages=ASKED, stream=True, stream_options=options
    ) as stream:
        pieces = list(stream)
    text = "".join(each.choices[0].delta.content or "" for each in pieces if each.choices)
    assert ANSWER in text and pieces[-1].usage.completion_tokens > 3
    with own.chat.completions.stream(model="valley", messages=ASKED) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == text


def test_openai_files(own):
    file = own.files.create(file=("told.txt", valley(12).encode()), purpose="user_data")
    found = own.files.wait_for_processing(file.id, poll_interval=0.05, max_wait_seconds=30)
    assert found.status == "processed" and found.bytes == len(valley(12))
    parts = [{"type": "file", "file": {"file_id": file.id}}, {"type": "text", "text": QUESTION}]
    found = own.chat.completions.create(model="demo", messages=[{"role": "user", "content": parts}])
    assert ANSWER in found.choices[0].message.content
    assert own.files.content(file.id).text == valley(12)
    assert file.id in [each.id for each in own.files.list()]
    assert own.files.delete(file.id).deleted


def test_openai_errors(own):
    with pytest.raises(openai.NotFoundError) as caught:
        own.chat.completions.create(model="nobody", messages=ASKED)
    assert caught.value.code == "model_not_found"
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(openai.BadRequestError) as caught:
        own.chat.completions.create(model="valley", messages=ASKED, tools=[tool])
    assert caught.value.param == "tools"
    with pytest.raises(openai.BadRequestError) as caught:
        own.embeddings.create(model="demo", input="x")
    assert caught.value.code == "unsupported_endpoint"


def test_langchain(server):
    """The recipe of the guide; and answers in a form."""
    langchain = pytest.importorskip("langchain_openai")
    url = f"{server.url}/v1"
    model = langchain.ChatOpenAI(base_url=url, api_key="none", model="valley", max_retries=0)
    found = model.invoke(QUESTION)
    assert ANSWER in found.content and found.usage_metadata["input_token_details"]["cache_read"]
    assert "".join(piece.content for piece in model.stream(QUESTION)) == found.content
    schema = {"title": "Stone", "type": "object", "required": ["stone"]}
    schema |= {"properties": {"stone": {"type": "string", "enum": ["ruby", "jade"]}}}
    formed = model.with_structured_output(schema, method="json_schema").invoke(QUESTION)
    assert formed == {"stone": "ruby"}
    assert [each.content for each in model.batch([QUESTION] * 3)] == [found.content] * 3
    with pytest.raises(openai.BadRequestError) as caught:
        model.bind_tools([schema | {"description": "x"}]).invoke(QUESTION)
    assert caught.value.param == "tools"


def test_llm(server, tmp_path):
    """The recipe of the guide."""
    pytest.importorskip("llm")
    lines = ["- model_id: book", "  model_name: valley", f'  api_base: "{server.url}/v1"']
    (tmp_path / "extra-openai-models.yaml").write_text("\n".join(lines))
    asked = [sys.executable, "-m", "llm", "-m", "book", "--key", "none", QUESTION]
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path)}
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    assert ANSWER in done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl(server):
    """The recipe of the guide."""
    body = json.dumps({"model": "valley", "messages": ASKED, "stream": True})
    done = subprocess.run(
        ["curl", "-sN", f"{server.url}/v1/chat/completions", "-d", body,
         "-H", "content-type: application/json"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ANSWER in done.stdout and done.stdout.endswith("data: [DONE]\n\n")
    sent = subprocess.run(
        ["curl", "-s", f"{server.url}/v1/files", "-F", "file=@-;filename=piped.txt"],
        input=valley(3), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert json.loads(sent.stdout)["model"] == "piped"
