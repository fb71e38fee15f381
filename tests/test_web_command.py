"""`lhydra web --open`, where there is a browser with a window and where there is none."""

import webbrowser

import pytest

from lhydra_server.web import command


@pytest.mark.parametrize(("display", "opens", "shown"), [("", True, False), (":0", False, False), (":0", True, True)])
def test_it_tells_whether_a_browser_was_opened(
    monkeypatch: pytest.MonkeyPatch, display: str, opens: bool, shown: bool
) -> None:
    opened: list[str] = []

    def to_open(url: str) -> bool:
        opened.append(url)
        return opens

    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", display) if display else monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(webbrowser, "open", to_open)
    assert command._show("http://127.0.0.1:8080") is shown
    assert opened == ["http://127.0.0.1:8080"] * bool(display)
