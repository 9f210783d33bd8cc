"""The etcd3 package, made to load beside a protobuf of today.

etcd3 0.12.0, the last release, carries messages generated for protobuf 3.x, which later ones refuse ("Descriptors
cannot be created directly"). The descriptors in them are as good as ever: they are read out of etcd3's files and built
into classes by protobuf's own builder, in a pool of their own, so that another etcd client in this process cannot
clash. Importing this module does it, once. `grpc` and etcd3's modules are taken from here, so that the order is right.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

# gRPC tells every failed connection on stderr, beside our one line. Read when it is loaded.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from google.protobuf import descriptor_pool
from google.protobuf.internal import builder

_VERSION: Final = "0.12.0"
_NAME: Final = "etcd3.etcdrpc"


def _install() -> None:
    """Put etcd3.etcdrpc into sys.modules, before etcd3 imports it."""
    if "etcd3" in sys.modules:
        raise ImportError("etcd3 was imported before flannel_udp.registry.etcd_shim, which must come first")
    version = importlib.metadata.version("etcd3")
    spec = importlib.util.find_spec("etcd3")
    if version != _VERSION or spec is None or spec.origin is None:
        raise ImportError(f"etcd3 is {version}: flannel_udp knows how to load {_VERSION} only")
    folder = Path(spec.origin).parent / "etcdrpc"
    package = ModuleType(_NAME)
    package.__path__ = [str(folder)]
    sys.modules[_NAME] = package
    pool = descriptor_pool.DescriptorPool()
    for name in ("kv_pb2", "auth_pb2", "rpc_pb2"):  # each uses those before it
        module: Any = ModuleType(f"{_NAME}.{name}")
        module.DESCRIPTOR = pool.AddSerializedFile(_serialized(folder / f"{name}.py"))
        builder.BuildMessageAndEnumDescriptors(module.DESCRIPTOR, vars(module))
        builder.BuildTopDescriptorsAndMessages(module.DESCRIPTOR, module.__name__, vars(module))
        sys.modules[module.__name__] = module
        setattr(package, name, module)
        _export(module, package)
    _export(importlib.import_module(f"{_NAME}.rpc_pb2_grpc"), package)  # the old stubs work as they are


def _serialized(file: Path) -> bytes:
    """The bytes of the FileDescriptorProto in a generated file."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "FileDescriptor":
            for keyword in node.keywords:
                if keyword.arg == "serialized_pb":
                    value = keyword.value.args[0] if isinstance(keyword.value, ast.Call) else keyword.value
                    text = ast.literal_eval(value)
                    return text if isinstance(text, bytes) else str(text).encode("latin-1")
    raise ImportError(f"{file}: no serialized_pb")


def _export(module: ModuleType, package: ModuleType) -> None:
    vars(package).update({name: value for name, value in vars(module).items() if not name.startswith("_")})


_install()

import etcd3  # noqa: E402 after what it needs
import etcd3.etcdrpc as rpc  # noqa: E402
import grpc  # noqa: E402

__all__ = ["etcd3", "grpc", "rpc"]
