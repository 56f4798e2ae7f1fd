"""What the server writes to standard error: text for people or JSON for programs; never a word of a prompt,
unless `log_miss_text` asks for some."""

from __future__ import annotations

import json
import logging
import logging.config
import re
import sys
from datetime import datetime, timezone
from typing import Any, TextIO

ACCESS_LOGGER = "freehold.access"
_PLAIN = re.compile(r"[!#-<>-~]+")


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at the moment."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Standard error."""
        return sys.stderr


class JsonFormatter(logging.Formatter):
    """One JSON object a line. What a record carries as `fields` becomes members of it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line. A traceback becomes one member, without the exception's text, which may quote a prompt."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        if fields is None:
            entry["message"] = record.getMessage()
        else:
            entry |= fields
        if record.exc_info and record.exc_info[1] is not None:
            from freehold.server.errors import describe_exception

            entry["exception"] = describe_exception(record.exc_info[1])
        return json.dumps(entry, ensure_ascii=True)  # no terminal obeys it, and no encoding of standard error tears it


class TextFormatter(logging.Formatter):
    """A time, a level and the message; the members of `fields` as name=value, those without a value left out."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or lines."""
        fields = getattr(record, "fields", None)
        if fields is not None:
            words = [f"{name}={_shown(value)}" for name, value in fields.items() if value not in (None, "")]
            text = f"{record.getMessage()} {' '.join(words)}"
        else:
            text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            from freehold.server.errors import describe_exception

            text += "\n" + describe_exception(record.exc_info[1])
        at = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="seconds")
        return f"{at} {record.levelname.lower()}: {text}"


def _shown(value: Any) -> str:
    if isinstance(value, str) and not _PLAIN.fullmatch(value):  # or what a prompt says could look like other lines
        return json.dumps(value, ensure_ascii=True)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def log_config(log_format: str, log_level: str, *, access_log: bool) -> dict[str, Any]:
    """For logging.config.dictConfig: the server's loggers and uvicorn's, all to standard error."""
    formatter = JsonFormatter if log_format == "json" else TextFormatter
    quiet = {"handlers": ["nowhere"], "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": formatter}},
        "handlers": {
            "stderr": {"()": StderrHandler, "formatter": "line"},
            "nowhere": {"class": "logging.NullHandler"},
        },
        "loggers": {
            "freehold": {"handlers": ["stderr"], "level": log_level.upper()},
            # Asked for by an option of its own, so the level of other messages does not hide it.
            ACCESS_LOGGER: {"level": "INFO", "propagate": True, "handlers": []} if access_log else quiet,
            "py.warnings": {"handlers": ["stderr"], "propagate": False},
            "uvicorn": {"handlers": ["stderr"], "level": log_level.upper(), "propagate": False},
            # uvicorn's own line holds the path that a client chose, and knows no tokens.
            "uvicorn.access": {"handlers": [], "propagate": False},
        },
    }


def set_up_logs(log_format: str, log_level: str, *, access_log: bool) -> None:
    """Let the process write its messages as `log_config` says from now on, the interpreter's warnings among them."""
    logging.config.dictConfig(log_config(log_format, log_level, access_log=access_log))
    logging.captureWarnings(True)


def log_request(fields: dict[str, Any]) -> None:
    """Write one request's line."""
    logging.getLogger(ACCESS_LOGGER).info("request", extra={"fields": fields})
