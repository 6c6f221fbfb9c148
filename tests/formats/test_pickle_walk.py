"""The pickle machine, against CPython's pickle and against pickles that lie."""

from __future__ import annotations

import collections
import copyreg
import io
import pickle
import pickletools
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitward_formats.errors import CheckpointError, PickleSyntaxError, PickleTooLargeError
from bitward_formats.readers import pickle_walk
from bitward_formats.readers.pickle_nodes import Blob, Call, Global, Listing, Mapping, Persistent
from bitward_formats.readers.pickle_tape import LINE_LIMIT_BYTES, Tape
from bitward_formats.readers.pickle_walk import Budget, Machine
from bitward_formats.readers.torch_storage_ids import storage_of
from bitward_formats.readers.torch_tensors import find_tensors


def walk(data: bytes, budget: Budget | None = None) -> Any:
    return Machine(Tape(lambda offset, length: data[offset : offset + length], 0, len(data)), budget or Budget()).load()


def plain(node: object) -> object:
    """A node as the value that it describes, where it is a plain one. Test data are shallow."""
    match node:
        case Listing(items=items):
            return [plain(item) for item in items]
        case Mapping(pairs=pairs):
            return {key: plain(value) for key, value in pairs}
        case tuple():
            return tuple(plain(item) for item in node)
        case Blob(length=length):
            return f"blob of {length}"
        case _:
            return node


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5) | st.tuples(inner, inner),
    max_leaves=20,
)


@settings(max_examples=40)
@given(VALUES, st.integers(3, 5))
def test_plain_values_come_back(value: object, protocol: int) -> None:
    assert plain(walk(pickle.dumps(value, protocol))) == value


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=50), lambda inner: st.lists(inner, max_size=4), max_leaves=9)
)
def test_the_older_protocols(value: object) -> None:
    """Without bytes, which are calls there."""
    for protocol in (0, 1, 2):
        assert plain(walk(pickle.dumps(value, protocol))) == value


def test_python_2_strings() -> None:
    assert walk(b"S'it\\x27s'\n.") == "it's"
    assert walk(b'S"plain"\n.') == "plain"
    assert walk(b"U\x03a\xe4b.") == "aäb"


def test_every_opcode_is_known() -> None:
    machine = Machine(Tape(lambda offset, length: b"", 0, 0), Budget())
    assert set(machine._handlers) | {ord(".")} == {ord(opcode.code) for opcode in pickletools.opcodes}


def test_calls_and_objects_are_only_written_down() -> None:
    class Thing:
        def __reduce__(self) -> Any:
            return date, (2020, 1, 2), {"state": [1]}

    call = walk(pickle.dumps(Thing()))
    assert isinstance(call, Call)
    assert isinstance(call.function, Global)
    assert (call.function.module, call.function.name, call.args) == ("datetime", "date", (2020, 1, 2))
    assert plain(call.state) == {"state": [1]}
    for protocol in range(6):
        ordered = walk(pickle.dumps(collections.OrderedDict(a=1), protocol))
        assert ordered.function.name == "OrderedDict" or protocol < 2
    assert walk(b"(idatetime\ndate\n.").function.name == "date"
    assert walk(b"(cdatetime\ndate\nK\x01o.").args == (1,)
    assert [one.pid for one in (walk(b"Pname\n."), walk(b"K\x05Q."))] == ["name", 5]
    assert walk(b"\x82\x07.").name == "extension 7"
    assert copyreg._extension_registry == {}  # type: ignore[attr-defined]


def test_long_strings_are_passed_over() -> None:
    read = []
    data = pickle.dumps({"tokens": "x" * 10_000_000, "after": b"y" * 1_000_000, "number": 3})

    def fetch(offset: int, length: int) -> bytes:
        read.append(length)
        return data[offset : offset + length]

    found = Machine(Tape(fetch, 0, len(data)), Budget()).load()
    assert plain(found) == {"tokens": "blob of 10000000", "after": "blob of 1000000", "number": 3}
    assert sum(read) < 300_000


def test_pickles_one_after_the_other() -> None:
    stream = io.BytesIO()
    for value in (1, "two", [3]):
        pickle.dump(value, stream, 2)
    data = stream.getvalue()
    tape = Tape(lambda offset, length: data[offset : offset + length], 0, len(data))
    budget = Budget()
    assert [plain(Machine(tape, budget).load()) for _ in range(3)] == [1, "two", [3]]
    assert tape.place == len(data)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "ends at 0"),
        (b"K", "ends at 1"),
        (b"X\x10\x00\x00\x00short.", "ends at 11"),
        (b"X\xff\xff\xff\xff.", "within 4294967295 bytes"),
        (b"\x8d" + b"\xff" * 8 + b".", "within"),
        (b"\x8b\xff\xff\xff\xff.", "within"),
        (b"\xfe.", "no pickle opcode 0xfe"),
        (b".", "empty stack"),
        (b"a.", "empty stack"),
        (b"2.", "empty stack"),
        (b"q\x00.", "empty stack"),
        (b"N\x86.", "takes 2 values"),
        (b"t.", "mark that is not there"),
        (b"0.", "mark that is not there"),
        (b"h\x05.", "empty place of the memo"),
        (b"p-1\n.", "empty stack|out of range"),
        (b"Np99999999999\n.", "out of range"),
        (b"NNa.", "adds to what is no list"),
        (b"N(NNu.", "what is no dict"),
        (b"}(Nu.", "key without a value"),
        (b"(Nd.", "key without a value"),
        (b"NNR.", "arguments that are no tuple"),
        (b"N)N\x92.", "no tuple and dict"),
        (b"(o.", "without a class"),
        (b"NN\x93.", "what is no string"),
        (b"}}b.", "state to what is no object"),
        (b"Ix\n.", "no integer"),
        (b"I" + b"9" * 300 + b"\n.", "no integer"),
        (b"Fx\n.", "no number"),
        (b"Sx\n.", "without quotes"),
        (b"S'\n.", "without quotes"),
        (b"V" + b"x" * (LINE_LIMIT_BYTES * 2) + b"\n.", "is longer than"),
        (b"Vnever ends", "ends at 11"),
    ],
)
def test_what_is_no_pickle_is_named(data: bytes, told: str) -> None:
    with pytest.raises(PickleSyntaxError, match=told):
        walk(data)


def test_a_file_that_shrinks_while_it_is_read() -> None:
    with pytest.raises(PickleSyntaxError, match="the file ended at 1"):
        Machine(Tape(lambda offset, length: b"" if offset else b"K", 0, 100), Budget()).load()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"N0" * 100 + b"N.", "steps"),
        (b"]0" * 60 + b"N.", "objects"),
    ],
)
def test_limits_of_a_budget(data: bytes, told: str) -> None:
    with pytest.raises(PickleTooLargeError, match=told):
        walk(data, Budget(steps=150, nodes=50))


def test_limits_of_stack_and_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_walk, "STACK_LIMIT", 100)
    monkeypatch.setattr(pickle_walk, "MARK_LIMIT", 100)
    for data in (b"N" * 101 + b".", b"(" * 101 + b"."):
        with pytest.raises(PickleTooLargeError, match="more than 100"):
            walk(data)


def test_nesting_as_deep_as_it_gets_neither_crashes_nor_hangs() -> None:
    deep = 100_000
    for data in (b"N" + b"\x85" * deep + b".", b"]" * deep + b"a" * (deep - 1) + b".", b"}N" * deep + b"N" + b"s" * deep + b"."):
        try:
            root = walk(data)
        except CheckpointError:
            continue
        with pytest.raises(PickleTooLargeError, match="nested"):
            find_tensors((root, 1))
        del root


def test_shared_parts_are_gone_through_once() -> None:
    """Each list holds the one before twice: 2^60 paths, sixty lists."""
    storage = Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 4))
    tensor = Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, 0, (4,), (1,), False, None))
    node: object = Listing([tensor])
    for _ in range(60):
        node = Listing([node, node])
    assert len(find_tensors(node)) == 1
    cycle = Listing([tensor])
    cycle.items.append(cycle)
    assert len(find_tensors(cycle)) == 1


def test_arguments_that_many_calls_share_cost_no_more() -> None:
    args = tuple(Listing([number]) for number in range(3000))
    state = Mapping([(str(number), Listing()) for number in range(3000)])
    shared: list[object] = [Call(Global("m", "C"), args, state=state) for _ in range(3000)]
    inner = Listing(list(args))
    shared += [Call(Global("torch._utils", "_rebuild_parameter"), (inner, False)) for _ in range(3000)]
    ordered = Listing([Listing(["key", inner]) for _ in range(3000)])
    shared += [Call(Global("collections", "OrderedDict"), (ordered,)) for _ in range(3000)]
    assert find_tensors(Listing(shared)) == []


def rebuild(*args: object, name: str = "_rebuild_tensor_v2") -> Call:
    return Call(Global("torch._utils", name), args)


STORAGE = Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 4))


@pytest.mark.parametrize(
    "call",
    [
        rebuild(),
        rebuild(STORAGE),
        rebuild(Listing(), 0, (4,), (1,)),
        rebuild(Persistent(("module", 1, 2, 3, 4)), 0, (4,), (1,)),
        rebuild(STORAGE, -1, (4,), (1,)),
        rebuild(STORAGE, True, (4,), (1,)),
        rebuild(STORAGE, 0, (4,), (1, 1)),
        rebuild(STORAGE, 0, (-4,), (1,)),
        rebuild(STORAGE, 0, (1 << 63,), (1,)),
        rebuild(STORAGE, 0, (4.0,), (1,)),
        rebuild(STORAGE, 0, "four", (1,)),
        rebuild(STORAGE, 0, (1,) * 256, (1,) * 256),
        rebuild(STORAGE, 0, (4,), (1,), False, None, name="_rebuild_tensor_v3"),
        rebuild(STORAGE, 0, (4,), (1,), False, None, "float32", name="_rebuild_tensor_v3"),
        rebuild(Persistent(("storage", "FloatStorage", "0", "cpu", 4)), 0, (4,), (1,)),
        rebuild(Persistent(("storage", Global("torch", "FloatStorage"), 0, "cpu", 4)), 0, (4,), (1,)),
        rebuild(Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", -4)), 0, (4,), (1,)),
        rebuild(Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 4, ("v", 2, 3))), 0, (4,), (1,)),
        rebuild(Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 4, "v")), 0, (4,), (1,)),
    ],
    ids=str,
)
def test_tensors_that_contradict_themselves(call: Call) -> None:
    with pytest.raises(PickleSyntaxError):
        find_tensors(Mapping([("w", call)]))


def test_a_part_of_a_storage() -> None:
    part = storage_of(Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 40, ("view", 10, 20))))
    assert part is not None
    assert (part.offset, part.length, part.whole_bytes) == (40, 80, 160)


def test_names() -> None:
    tensor = rebuild(STORAGE, 0, (4,), (1,))
    module = Call(
        Global("m", "Net"), (), state=Mapping([("_parameters", Mapping([("w", tensor)])), ("_modules", Mapping([("sub", tensor)]))])
    )
    root = Mapping(
        [
            ("a", Mapping([("b", tensor)])),
            ("a.b", tensor),
            (0, Listing([tensor])),
            ((1, 2), tensor),
            ("half \ud800", tensor),
            ("again", Listing()),
            ("again", tensor),
            ("net", module),
            ("slots", Call(Global("m", "S"), (), state=(None, Mapping([("x", tensor)])))),
            ("state", Call(Global("m", "S"), (), state=(tensor, 1))),
            (
                "wrapped",
                Call(
                    Global("torch._tensor", "_rebuild_from_type_v2"),
                    (Global("torch._utils", "_rebuild_tensor_v2"), None, tensor.args, None),
                ),
            ),
        ]
    )
    names = [claim.name for claim in find_tensors(root)]
    expected = ["a.b", "a.b#2", "0.0", "[3]", "half \\ud800", "again", "net.w", "net.sub", "slots.x", "state.0", "wrapped"]
    assert names == expected
    assert [claim.name for claim in find_tensors(tensor)] == ["tensor"]
    assert [claim.name for claim in find_tensors((tensor,), "constants")] == ["constants.0"]


def test_limits_of_names() -> None:
    tensor = rebuild(STORAGE, 0, (4,), (1,))
    with pytest.raises(PickleTooLargeError, match="name has"):
        find_tensors(Mapping([("x" * 65_535, tensor)]))
    many = Listing([rebuild(STORAGE, 0, (4,), (1,)) for _ in range(1100)])
    with pytest.raises(PickleTooLargeError, match="names of the tensors"):
        find_tensors(Mapping([("x" * 65_000, many)]))
