"""A prior tells usual weights from unusual ones, place by place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitward_agent.diagnosis.prior_lookup import PriorLookup, octaves_of
from bitward_agent.diagnosis.series import series_of
from bitward_agent.errors import InputError
from bitward_agent.io import OpenFile
from bitward_agent.neighbours import layout_of_file
from checkpoints import write_safetensors
from diagnosis.damaged import weights


def test_usual_weights_are_likelier_than_large_ones_and_those_than_impossible_ones(minilm: Path) -> None:
    with PriorLookup([minilm]) as priors:
        name = "encoder.layer.2.output.dense.weight"
        likely = priors.log_prior_nats(name, np.array([1000]), np.array([0.03, 0.3, 3.0, 3e30, 1e-9, np.nan, np.inf]))
        assert likely[0] > likely[1] > likely[2] > likely[3] > -np.inf
        assert likely[0] > likely[4]
        assert np.isneginf(likely[5:]).all()
        # Half as many numbers with each octave towards zero.
        fall = priors.log_prior_nats(name, np.array([1000]), np.array([1e-12, 1e-12 / 1024]))
        assert 0 < fall[0] - fall[1] <= 10 * np.log(2) + 1e-6


def test_a_row_has_its_own_scale(tmp_path: Path) -> None:
    kind, shape, data = weights((64, 128), "F32", 13)
    values = np.frombuffer(data, np.float32).reshape(shape).copy()
    values[5] *= 8
    path = write_safetensors(tmp_path / "m.safetensors", {"w": (kind, shape, values.tobytes()), "tiny": weights((9,), "F32", 1)})
    with PriorLookup([path]) as priors:
        usual, wide = priors.log_prior_nats("w", np.array([4 * 128, 5 * 128]), np.array([0.8, 0.8]))
        assert wide > usual + 3
        assert priors.log_prior_nats("tiny", np.array([0, 8]), np.array([1.0, 1e9])).tolist() == [0.0, 0.0]
        assert priors.has("w")
        assert not priors.has("v")
        with pytest.raises(InputError, match="no tensor"):
            priors.log_prior_nats("v", np.array([0]), np.array([1.0]))
        with pytest.raises(InputError, match="places go from"):
            priors.log_prior_nats("w", np.array([64 * 128]), np.array([1.0]))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_octaves_of_numbers_are_those_of_their_bits(dtype: str, tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", {"w": weights((300,), dtype, 14)})
    with OpenFile(str(path)) as file:
        (series,) = series_of(layout_of_file(file, file.state().size))
        bits = series.values(file.read(series.span.offset, series.span.length), 0, series.count, 0)
    numbers = np.array([series.form.value(int(one)) for one in bits], np.float64)
    expected = series.form.octaves(bits & bits.dtype.type(series.form.magnitude_mask))
    np.testing.assert_allclose(octaves_of(numbers, series.form.bias), expected, atol=1e-9)
