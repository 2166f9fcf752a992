"""The committed generated module, the Python enums and proto/messages.proto say the same."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from comfy_cluster import wire
from comfy_cluster.wire import messages_pb2 as pb

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = ROOT / "proto" / "messages.proto"
REGISTERED = "comfy_cluster/wire/messages.proto"


def test_generated_module_matches_the_schema(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    source = tmp_path / REGISTERED
    source.parent.mkdir(parents=True)
    source.write_bytes(SCHEMA.read_bytes())
    out = tmp_path / "out.bin"
    command = [sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", f"-I{tmp_path}"]
    subprocess.run([*command, f"--descriptor_set_out={out}", REGISTERED], check=True, cwd=tmp_path)
    compiled = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]
    committed = descriptor_pb2.FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
    committed.ClearField("syntax")
    compiled.ClearField("syntax")
    assert without_json_names(committed) == without_json_names(compiled)


def without_json_names(
    file: descriptor_pb2.FileDescriptorProto,
) -> descriptor_pb2.FileDescriptorProto:
    """Compilers differ in whether they write the derived json_name."""
    for message in file.message_type:
        for field in message.field:
            field.ClearField("json_name")
    return file


def test_every_field_and_value_of_the_schema_is_in_the_generated_module() -> None:
    """A small reading of the .proto by itself, for where no compiler is at hand."""
    text = re.sub(r"//[^\n]*", "", SCHEMA.read_text(encoding="utf-8"))
    blocks = re.findall(r"(message|enum) (\w+) \{(.*?)\}", text, re.DOTALL)
    assert {name for kind, name, _ in blocks if kind == "message"} == set(
        pb.DESCRIPTOR.message_types_by_name
    )
    assert {name for kind, name, _ in blocks if kind == "enum"} == set(
        pb.DESCRIPTOR.enum_types_by_name
    )
    for kind, name, body in blocks:
        declared = {name: int(number) for name, number in re.findall(r"(\w+) = (\d+);", body)}
        assert declared == numbers_of(kind, name)


def numbers_of(kind: str, name: str) -> dict[str, int]:
    if kind == "enum":
        values = pb.DESCRIPTOR.enum_types_by_name[name].values
        return {value.name: value.number for value in values}
    fields = pb.DESCRIPTOR.message_types_by_name[name].fields
    return {field.name: field.number for field in fields}


@pytest.mark.parametrize("kind", [wire.MessageType, wire.InstanceRole, wire.FailureCode])
def test_python_enums_have_the_schema_s_names_and_numbers(
    kind: type[wire.MessageType | wire.InstanceRole | wire.FailureCode],
) -> None:
    values = {item.name: int(item) for item in kind}
    schema = numbers_of("enum", kind.__name__)
    assert schema == {**values, next(name for name in schema if schema[name] == 0): 0}


def test_cluster_message_is_the_specification_s() -> None:
    assert numbers_of("message", "ClusterMessage") == {
        "message_id": 1,
        "message_type": 2,
        "sender_instance": 3,
        "target_instance": 4,
        "require_ack": 5,
        "payload": 6,
    }


def test_generated_module_demands_no_protobuf_newer_than_4_25() -> None:
    spec = importlib.util.find_spec("comfy_cluster.wire.messages_pb2")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    assert "runtime_version" not in source  # the check that newer compilers write
    assert "# Protobuf Python Version: 4.25." in source


def test_name_in_the_process_wide_pool_is_our_own() -> None:
    assert pb.DESCRIPTOR.name == REGISTERED
