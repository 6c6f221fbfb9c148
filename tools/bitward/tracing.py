"""Recording a trace: what a model's modules give on a few fixed tokens, beside the model."""

from __future__ import annotations

import time
from pathlib import Path

from bitward_agent.diagnosis.calibration import calibration_text
from bitward_agent.durable import refuse_other_file
from bitward_agent.errors import InputError
from bitward_agent.findings import ExitCode
from bitward_formats.errors import MissingExtraError
from bitward_formats.frozen import dataclass
from bitward_formats.trace_file import MAGIC


@dataclass(frozen=True, slots=True)
class TraceReport:
    """The document ``bitward.trace/1``. ``modules`` counts calls of modules with parameters, ``tokens`` what the model was run on."""

    model: str
    path: str
    bytes: int
    modules: int
    tokens: int
    seconds: float
    schema: str = "bitward.trace/1"

    @property
    def exit_code(self) -> int:
        """A trace that was not written is an error, not a report."""
        return ExitCode.OK


def record_trace(model: str, output: str | None = None, *, calibration: str | None = None, device: str = "cpu") -> TraceReport:
    """Run ``model`` (a directory or ``module:factory``) and write its trace, by default into its directory.

    Raises:
        InputError: There is no such model, or a factory's model and no ``output``.
        BitwardError: It cannot be loaded or run, gives values that are not finite, or the file cannot be written.
        MissingExtraError: torch or transformers is not installed.
    """
    started = time.monotonic()
    try:
        from bitward_agent.diagnosis.departures import TRACE_NAME, save_trace
        from bitward_agent.diagnosis.subject import load_subject, told_as_model_error
        from bitward_agent.diagnosis.trace import record
    except ImportError as error:
        raise MissingExtraError(f"a trace needs {error.name}: pip install 'bitward[diagnose]'") from error
    if output is None and not Path(model).is_dir():
        raise InputError(f"{model}: no such directory (for module:factory say where the trace goes, with -o)")
    target = Path(model) / TRACE_NAME if output is None else Path(output)
    refuse_other_file(str(target), MAGIC)
    subject = load_subject(model, calibration_text(None if calibration is None else Path(calibration)), device=device)
    with told_as_model_error(model):
        trace = record(subject)
    size = save_trace(target, trace)
    tokens = max((one.values.size for one in trace.inputs), default=0)
    return TraceReport(model, str(target), size, len(trace.entries), tokens, time.monotonic() - started)
