"""External data of ONNX models: files of bare elements, which only the model beside them can explain.

Such a file has no header and any name, so it is known by this alone: an ``.onnx`` file in the same folder says (``external_data`` of a
TensorProto, ``onnx.proto``) that the elements of a tensor lie in it, at an offset and of a length. A location with a folder in it names
no file of the same folder and is passed over. Nothing is read of the file itself.
"""

from __future__ import annotations

from bitward_formats.errors import CheckpointError
from bitward_formats.readers.claims import Claim, Fillers, layout_of_claims
from bitward_formats.readers.file_view import FileView
from bitward_formats.readers.onnxgraph import find_tensors
from bitward_formats.readers.onnxtensor import Storage, Tensor, tensor_bytes
from bitward_formats.readers.protowalk import Walker
from bitward_formats.spans import Layout, Role

NAME = "onnx-data"
MODEL_SUFFIX = ".onnx"
MODELS_LIMIT = 64
"""Most models of a folder that are asked; exports have an encoder, a decoder or three."""


def layout_beside(view: FileView) -> Layout | None:
    """The layout of a file of external data; None if no model beside it refers to it.

    A model that cannot be read, or is none, has nothing to say. Tensors that several models share are told once.
    """
    own_name = view.name.rpartition("/")[2]
    models = [name for name in view.neighbours.names() if name.lower().endswith(MODEL_SUFFIX) and name != own_name]
    claims: dict[Claim, None] = {}
    outside_count = 0
    for model in models[:MODELS_LIMIT]:
        for name, tensor in _external_tensors(view, model, own_name):
            claim = _claim(name, tensor, view.size)
            if claim is None:
                outside_count += 1
            else:
                claims[claim] = None
    if not claims:
        return None
    notes = []
    if len(models) > MODELS_LIMIT:
        notes.append(f"only the first {MODELS_LIMIT} models beside it were asked")
    if outside_count:
        tensors = "1 tensor" if outside_count == 1 else f"{outside_count} tensors"
        notes.append(f"{tensors} whose place does not fit the file or the shape left out")
    return layout_of_claims(NAME, view.size, claims, Fillers(Role.GAP, Role.GAP, Role.GAP), notes)


def _external_tensors(view: FileView, model: str, location: str) -> list[tuple[str, Tensor]]:
    """What a model says lies in the file ``location``, under the tensors' names."""
    try:
        beside = view.neighbours.open(model)
        if beside is None:
            return []
        found = find_tensors(Walker(beside.fetch, beside.size), only_external=True)
    # OSError: a model on bad sectors is no reason not to protect its data.
    except (CheckpointError, OSError):
        return []
    return [
        (named.name, named.tensor)
        for named in found
        if named.tensor.storage is Storage.EXTERNAL and named.tensor.external is not None and named.tensor.external.location == location
    ]


def _claim(name: str, tensor: Tensor, file_bytes: int) -> Claim | None:
    """Where the tensor lies, if that fits both the file and its shape. Without a length it is as long as its shape says."""
    place, length = tensor.external, tensor_bytes(tensor.dtype, tensor.dims)
    if place is None or length is None or place.length not in (None, length) or place.offset + length > file_bytes:
        return None
    return Claim(place.offset, place.offset + length, name, tensor.dtype, tensor.dims)
