"""The documents against the code: what they print in tables, hex and commands must be true.

Each checked passage stands between `<!-- name -->` and `<!-- end -->`. Imports no torch, but for
the README's program.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

from comfy_cluster.cluster.choice import CodecChooser
from comfy_cluster.cluster.forecast import CodecSpeeds
from comfy_cluster.codec.envelope import Head, pack_raw_prefix
from comfy_cluster.codec.payload import digest_of
from comfy_cluster.config import ClusterConfig
from comfy_cluster.protocol.incoming_buffer import IncomingState
from comfy_cluster.protocol.outgoing_buffer import OutgoingState
from comfy_cluster.protocol.stats import ProtocolStats
from comfy_cluster.transport.binding_requests import StunStats
from comfy_cluster.transport.shared_memory import records
from comfy_cluster.transport.shared_memory.stats import SharedMemoryStats
from comfy_cluster.wire import (
    Ack,
    Announce,
    BufferAnnouncement,
    InstanceRole,
    Message,
    MessageType,
    TransferKey,
)
from comfy_cluster.wire import messages_pb2 as pb
from tests.engines import COMPILED, engine, load_engine
from tests.layering import LAYERS

__all__ = ["engine"]  # a fixture

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "comfy_cluster"
GOLDEN = Path(__file__).parent / "golden"
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
# Where every public number must be documented.
DOCUMENTED_FOLDERS = ("_fastpath_py", "wire", "protocol")
# Not numbers of the protocol: codes inside a process, limits of integer types, no limit at all.
INNER_NAMES = re.compile(
    r"EVENT_[A-Z]+(_[A-Z]+)?|EMPTY|IN_FLIGHT|LOST|WORD_MASK|STARTUP|DRAIN|CRUISE|PROBE_RTT|LARGEST_U\d+|NEVER"
)


def text_of(document: str) -> str:
    path = ROOT / document
    if not path.exists():
        pytest.skip(f"this copy of the project has no {document}")
    return path.read_text(encoding="utf-8")


def passage(document: str, name: str) -> str:
    """What stands between the marks of a name."""
    parts = text_of(document).split(f"<!-- {name} -->\n")
    assert len(parts) == 2, f"{document} has {len(parts) - 1} passages {name!r}"
    return parts[1].split("<!-- end -->")[0]


def rows_of(document: str, name: str) -> list[list[str]]:
    """The cells of a table, without its head, without backticks."""
    lines = [line for line in passage(document, name).splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in lines[2:]]


# Bytes


@pytest.mark.parametrize(
    ("name", "first", "size"),
    [
        ("bytes HEADER_SIZE", 0, "HEADER_SIZE"),
        ("bytes CHUNK_HEADER_SIZE from HEADER_SIZE", 16, "CHUNK_HEADER_SIZE"),
        ("bytes SACK_HEADER_SIZE from HEADER_SIZE", 16, "SACK_HEADER_SIZE"),
    ],
)
def test_byte_table_has_no_gap(engine: ModuleType, name: str, first: int, size: str) -> None:
    offset = first
    for row in rows_of("docs/protocol.md", name):
        assert int(row[0]) == offset, row
        offset += int(row[1])
    assert offset == first + getattr(engine, size)


@pytest.mark.parametrize("folder", ["valid", "invalid"])
def test_golden_vectors_are_printed(folder: str) -> None:
    rows = {row[0]: row for row in rows_of("docs/protocol.md", f"golden {folder}")}
    assert sorted(rows) == sorted(path.stem for path in (GOLDEN / folder).glob("*.hex"))
    for name, row in rows.items():
        data = "".join((GOLDEN / folder / f"{name}.hex").read_text().split())
        info = json.loads((GOLDEN / folder / f"{name}.json").read_text())
        assert row[1] == info["description"]
        assert folder == "valid" or row[2] == info["counter"]
        shown = row[-1].replace("(empty)", "")
        assert shown == data or (shown.endswith("…") and data.startswith(shown[:-1])), name


def test_worked_exchange_is_the_golden_one() -> None:
    steps = json.loads((GOLDEN / "exchange.json").read_text())["steps"]
    expected = [
        [f"{step['at']:.2f}", *(step[key] for key in ("sender", "kind", "what", "hex"))]
        for step in steps
    ]
    assert rows_of("docs/protocol.md", "exchange") == expected


def example_payload() -> bytes:
    """The envelope that the document prints: [1.0, -2.0] in float32."""
    return pack_raw_prefix(Head((2,), "float32"), 8) + bytes.fromhex("0000803f000000c0")


def test_example_envelope_is_what_the_codec_writes() -> None:
    block = text_of("docs/protocol.md").split("<!-- envelope -->\n```\n")[1].split("```")[0]
    assert bytes.fromhex(block) == example_payload()
    printed = text_of("docs/protocol.md").split("<!-- digest -->`")[1][:32]
    assert bytes.fromhex(printed) == digest_of(example_payload())


def test_example_messages_are_what_wire_packs() -> None:
    announce = Announce(
        cluster_id="default",
        instance_index=1,
        instance_count=4,
        role=InstanceRole.FOLLOWER,
        boot_id=0x1122334455667788,
        session_id=0xAAAA0001,
        packet_size=65_507,
        software_version="0.1.0",
        engine="compiled",
    )
    payload = example_payload()
    announcement = BufferAnnouncement(
        buffer_id=0x0001000000000001,
        size=len(payload),
        chunk_size=0,
        digest=digest_of(payload),
        key=TransferKey("job-1", "7", source=1),
        inline_payload=payload,
    )
    fan_in = MessageType.DISTRIBUTE_BUFFER_FANIN
    message_id = 0x2A00000001
    messages = [
        Message(0, MessageType.ANNOUNCE, 1, 0, payload=announce.pack()),
        Message(7, MessageType.ACK, 0, 1, payload=Ack((message_id,)).pack()),
        Message(message_id, fan_in, 1, 0, require_ack=True, payload=announcement.pack()),
    ]
    printed = [row[1] for row in rows_of("docs/protocol.md", "encoded")]
    assert printed == [message.pack().hex() for message in messages]


# Messages


@pytest.mark.parametrize("name", sorted(pb.DESCRIPTOR.message_types_by_name))
def test_message_table_is_the_schema(name: str) -> None:
    fields = pb.DESCRIPTOR.message_types_by_name[name].fields
    listed = {row[0]: int(row[1]) for row in rows_of("docs/protocol.md", f"message {name}")}
    assert listed == {field.name: field.number for field in fields}


@pytest.mark.parametrize("name", sorted(pb.DESCRIPTOR.enum_types_by_name))
def test_enum_table_is_the_schema(name: str) -> None:
    values = pb.DESCRIPTOR.enum_types_by_name[name].values_by_name
    listed = {row[0]: int(row[1]) for row in rows_of("docs/protocol.md", f"enum {name}")}
    assert listed == {value.name: value.number for value in values.values() if value.number}


@pytest.mark.parametrize("states", [OutgoingState, IncomingState])
def test_transfer_states_are_those_of_the_code(states: Any) -> None:
    listed = [row[0] for row in rows_of("docs/protocol.md", f"states {states.__name__}")]
    assert listed == [state.name for state in states]


# Constants


@cache
def module_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def assignments(path: Path) -> dict[str, ast.expr]:
    """Module-level names of one file and what they are set to."""
    return {
        node.targets[0].id: node.value
        for node in module_tree(path).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def constant(path: Path, name: str) -> Any:
    """The value of a module-level constant, worked out without an import: codec/ needs torch."""
    found = assignments(path).get(name)
    if found is None:
        return constant(*_source_of(path, name))
    names = {node.id for node in ast.walk(found) if isinstance(node, ast.Name)}
    values = {each: constant(path, each) for each in names}
    return eval(compile(ast.Expression(found), str(path), "eval"), {"__builtins__": {}}, values)


def _source_of(path: Path, name: str) -> tuple[Path, str]:
    for node in module_tree(path).body:
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            module = (node.module or "").removeprefix("comfy_cluster.").replace(".", "/")
            base = path.parent if node.level else PACKAGE
            file = base / f"{module}.py"
            return (file if file.exists() else base / module / "__init__.py"), name
    raise AssertionError(f"{path.name} has no constant {name}")


def documented_constants() -> dict[str, Any]:
    rows = rows_of("docs/protocol.md", "constants")
    numbers = {row[0]: re.sub(r"(?<=\d),(?=\d{3})", "", row[1]) for row in rows}
    return {name: ast.literal_eval(number) for name, number in numbers.items()}


def test_constants_have_the_values_of_the_code() -> None:
    wrong = {}
    for name, value in documented_constants().items():
        module, _, constant_name = name.rpartition(".")
        actual = constant(PACKAGE / f"{module.replace('.', '/')}.py", constant_name)
        if (type(actual), actual) != (type(value), value):
            wrong[name] = (value, actual)
    assert wrong == {}


def test_every_public_number_is_documented() -> None:
    documented = documented_constants().keys()
    for folder in DOCUMENTED_FOLDERS:
        for path in sorted((PACKAGE / folder).glob("*.py")):
            for name, value in assignments(path).items():
                is_number = not any(isinstance(node, ast.Call) for node in ast.walk(value))
                is_number &= isinstance(value, ast.Constant | ast.BinOp)
                is_public = name.isupper() and not name.startswith(("_", "IS_", "HAS_"))
                if not is_public or not is_number or INNER_NAMES.fullmatch(name):
                    continue
                if isinstance(constant(path, name), int | float):
                    assert f"{folder}.{path.stem}.{name}" in documented


def test_compiled_engine_has_the_same_constants() -> None:
    parts = [*PACKAGE.glob("_fastpath.px*"), *PACKAGE.glob("_fastpath_parts/*.px*")]
    text = "".join(part.read_text(encoding="utf-8") for part in parts)
    found = re.findall(r"^(?:    |cdef double )C_([A-Z_]+) = ([0-9.xA-F]+)", text, re.MULTILINE)
    compiled = {name: ast.literal_eval(number) for name, number in found}
    documented = {
        name.rpartition(".")[2]: value
        for name, value in documented_constants().items()
        if name.startswith("_fastpath_py.") and not isinstance(value, tuple)
    }
    derived = {"HISTORY_WINDOW"}  # the compiled engine works it out where it uses it
    assert documented.keys() - compiled.keys() == derived
    assert {name: compiled[name] for name in documented.keys() - derived} == {
        name: documented[name] for name in documented.keys() - derived
    }


# Counters


def counter_names(table: str) -> list[str]:
    return sorted(row[0] for row in rows_of("docs/protocol.md", f"counters {table}"))


def test_engine_counters_are_documented(engine: ModuleType) -> None:
    core = engine.PacketEngine()
    address = ("10.0.0.2", 9998)
    core.connect_peer(
        1, address, local_session=1, remote_session=2, packet_size=engine.MIN_PACKET_SIZE, now=0.0
    )
    assert counter_names("engine") == sorted(engine.COUNTERS) == sorted(core.stats())
    assert counter_names("peer") == sorted(core.peer_stats(1))


def test_loop_counters_are_documented() -> None:
    compiled = load_engine(COMPILED)
    assert counter_names("loops") == sorted(compiled.PacketEngine().loop_stats())


def test_protocol_counters_are_documented() -> None:
    fields = [field.name for field in dataclasses.fields(ProtocolStats)]
    assert [row[0] for row in rows_of("docs/protocol.md", "counters protocol")] == fields


def test_stun_counters_are_documented() -> None:
    fields = [field.name for field in dataclasses.fields(StunStats)]
    assert [row[0] for row in rows_of("docs/protocol.md", "counters stun")] == fields


def test_codec_counters_are_documented() -> None:
    chooser = CodecChooser(ClusterConfig(), CodecSpeeds(), thread_count=1)
    assert [row[0] for row in rows_of("docs/protocol.md", "counters codecs")] == list(
        chooser.stats()
    )


def test_shared_memory_counters_and_records_are_documented() -> None:
    fields = [field.name for field in dataclasses.fields(SharedMemoryStats)]
    assert [row[0] for row in rows_of("docs/protocol.md", "counters shared memory")] == fields
    listed = {row[0]: int(row[1]) for row in rows_of("docs/protocol.md", "records")}
    assert listed == {kind.__name__: kind.KIND for kind in get_args(records.Record)}


# Architecture


def test_layer_table_is_the_enforced_one() -> None:
    listed = {
        name: int(row[0])
        for row in rows_of("docs/architecture.md", "layers")
        for name in re.findall(r"[a-z_]+", row[1].replace("__init__", ""))
    }
    assert listed | {"": 0} == LAYERS


def test_state_diagram_is_drawn_from_the_table() -> None:
    pytest.importorskip("torch")
    from comfy_cluster.cluster.state import mermaid_diagram

    assert f"```mermaid\n{mermaid_diagram()}```" in text_of("docs/architecture.md")


def test_collectives_table_names_what_exists() -> None:
    rows = rows_of("docs/architecture.md", "collectives")
    source = module_tree(PACKAGE / "cluster" / "cluster.py")
    methods = {node.name for node in ast.walk(source) if isinstance(node, ast.FunctionDef)}
    assert {row[0] for row in rows} <= methods
    assert {row[3] for row in rows} <= set(MessageType.__members__)


def test_where_to_look_leads_somewhere() -> None:
    paths = [
        path
        for row in rows_of("docs/architecture.md", "where")
        for path in re.findall(r"[\w./-]+/[\w./-]*", row[1])
    ]
    assert len(paths) > 20
    shipped = [path for path in paths if not path.startswith(".ci/") or (ROOT / ".ci").exists()]
    assert [path for path in shipped if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_has_a_target(document: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", text_of(document)):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / document).parent / file if file else ROOT / document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target.read_text(encoding="utf-8")), link


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# README


def readme_commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", text_of("README.md"), re.DOTALL)
    return [part.strip() for block in blocks for part in block.split("&&")]


def test_readme_installs_and_tests_as_ci_does() -> None:
    commands = [command.split("FASTPATH=1 ")[-1] for command in readme_commands()]
    lines = [line.strip() for line in text_of(".ci/run").splitlines()]
    assert 'pip install -e ".[test]"' in commands
    assert 'python -m pip install -q -e ".[test]"' in lines
    assert "python -m pytest" in commands
    assert 'python -m pytest "$@"' in lines
    assert any(line.startswith("export COMFY_CLUSTER_REQUIRE_FASTPATH=1") for line in lines)


def test_readme_shows_the_demo_as_it_is() -> None:
    assert "comfy-cluster demo" in readme_commands()
    shown = text_of("README.md").split("<!-- demo -->")[1].split("```")[1]
    source = (PACKAGE / "cli" / "report.py").read_text(encoding="utf-8")
    columns = re.findall(r'"([\w /]+)"', source.split("COLUMNS = ")[1].split("\n)")[0])
    assert len(columns) == 8
    assert all(word in shown for column in columns for word in column.split())
    assert "The results are identical, bit for bit" in shown
    assert "The results are identical, bit for bit" in source


def test_symptoms_are_texts_of_the_program() -> None:
    """A quoted text stands in a source file, but for its numbers."""
    source = "".join(
        re.sub(r'"\n\s*f?"', "", path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")
    )
    for symptom, *_ in rows_of("README.md", "symptoms"):
        quoted = symptom.split("`")[0]
        parts = [part.strip() for part in re.split(r"\d+", quoted) if part.strip()]
        assert all(part in source for part in parts), quoted


def test_readme_program_runs_as_a_cluster_of_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from comfy_cluster.runtime import close_cluster

    for name in [name for name in os.environ if name.startswith("COMFY_CLUSTER_")]:
        monkeypatch.delenv(name)
    source = re.search(r"```python\n(.*?)```", text_of("README.md"), re.DOTALL)
    assert source is not None
    try:
        exec(compile(source[1], "README.md", "exec"), {})
    finally:
        close_cluster()
    assert capsys.readouterr().out == "torch.Size([8, 512, 512, 3])\n"
