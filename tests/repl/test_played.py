"""The terminal needs no torch: a chat with a session that plays its role, in a process in which
torch cannot be imported."""

import json
import os
import subprocess
import sys

from tests.support.program import ROOT

TYPED = (
    "/help memory", "What did he count?", "/memory", "/heads", "/heads 1", "/coverage", "/ctx",
    "/files", "/set temp 0.7", "/show", "/method", "/budget", "/system", "/nonsense", "/clear?",
    "And at night?", "/undo", "/save night watch", "/sessions", "/export chat.md", "/copy 1",
)  # fmt: skip
SHOWN = (
    "Ask about story.txt", "/memory", "Ships.", "3 tokens", "KV kept", "tokens kept per KV head",
    "layer 1 · tokens kept", "share of entries kept", "1 turn", "story.txt", "temperature", "0.7",
    "played", "→ plays", "now: plays:budget=25%, window=8", "document keeps", "no system text",
    "unknown command /nonsense", "forget the conversation", "Stars.", "taken back, from 'And at",
    "saved as 'night watch'", "→ night watch", "1 turn written to chat.md", "0 code blocks",
)  # fmt: skip


def test_a_chat_without_torch(tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "COLUMNS": "100",
        "LANG": "C.UTF-8",
        "PYTHONUTF8": "1",
    }
    (tmp_path / "model").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.played", "model", "He counted Ships.|Stars.", *TYPED],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stderr + done.stdout
    assert done.returncode == 0, said
    assert not [text for text in SHOWN if text not in said], said
    [chat] = (tmp_path / "state" / "kvchat" / "sessions").glob("*.jsonl")
    events = [json.loads(line) for line in chat.read_text("utf-8").splitlines()]
    turns = [event["answer"] for event in events if event["event"] == "turn"]
    assert turns == ["He counted Ships.", "Stars."]
    assert [e for e in events if e["event"] == "undo"] == [{"event": "undo", "count": 1}]
    assert "Ships." in (tmp_path / "chat.md").read_text()
