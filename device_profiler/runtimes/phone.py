"""An attached iPhone through coremltools' remote device service, with its known faults designed around.

coremltools 9.0 (``experimental.remote_device``) gives up after 20 polls, takes a dead app for a live one, never unloads
a model and leaks the process that holds the app open. What is used of it here is what talks to the phone: the list of
devices, building and launching the app, the file transport and the messages. Waiting, liveness, relaunching and
cleaning up are ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from device_profiler.device import Device
from device_profiler.device import Phone as PhoneSettings
from device_profiler.errors import OutOfMemory, ProfileError, SessionLost, TimedOut, WorkloadError, one_line

SOURCE = "Documents/modelrunnerd"
KILLED = re.compile(r"signal 9|sigkill|jetsam|memory", re.IGNORECASE)
FULL = re.compile(r"no space|disk is full|not enough space|out of space", re.IGNORECASE)


class Phone:
    """One phone and the app on it.

    Attributes:
        epoch: counts launches of the app; a model loaded in an earlier one is gone.
    """

    def __init__(self, device: Device, *, poll_s: float = 1.0, reconnect_s: float = 300.0) -> None:
        self.settings = device.phone or PhoneSettings()
        self.name = device.name
        self.poll_s = poll_s
        self.reconnect_s = reconnect_s
        self.epoch = 0
        self._remote: Any = None
        self._session: Any = None
        self._socket: Any = None
        self._folder: Path | None = None
        self._models: dict[str, tuple[str, str]] = {}

    def find(self) -> Any:
        """The attached phone, as coremltools describes it.

        Raises:
            ProfileError: no tools, no phone, several and none named, another model, developer mode off, locked: with
                the remedy.
        """
        for tool in ("xcrun", "devicectl"):
            if shutil.which(tool) is None:
                raise ProfileError(
                    f"{self.name}: a phone is driven by Xcode's {tool}, which is not on the PATH; on a Mac install "
                    "Xcode 16 or later and put its usr/bin on the PATH, elsewhere use iphone16_pro_max_roofline."
                )
        with _quiet():
            from coremltools.models.ml_program.experimental import remote_device as rd

            try:
                phones = [d for d in rd.Device.get_devices() if d.type in (rd.DeviceType.IPHONE, rd.DeviceType.IPAD)]
            except (rd._DeviceCtlError, ValueError, OSError) as error:
                raise ProfileError(
                    f"{self.name}: devicectl could not list devices: {_said(error)}; open Xcode once."
                ) from None
        listed = ", ".join(f"{d.name} ({d.udid})" for d in phones)
        wanted = self.settings.udid
        if not phones:
            raise ProfileError(f"{self.name}: no iPhone is attached; plug one in, unlock it and trust this Mac.")
        if wanted:
            phones = [d for d in phones if wanted in (d.udid, d.identifier)]
            if not phones:
                raise ProfileError(f"{self.name}: no phone with udid {wanted!r} is attached; attached: {listed}.")
        if len(phones) > 1:
            raise ProfileError(
                f"{self.name}: several phones are attached: {listed}; set phone.udid in the device's YAML."
            )
        found = phones[0]
        self._check_model(found)
        if str(found.developer_mode_state).lower() not in ("enabled", ""):
            raise ProfileError(
                f"{self.name}: developer mode is off on {found.name}; turn it on in Settings > Privacy & Security."
            )
        if found.state != rd.DeviceState.CONNECTED:
            raise ProfileError(
                f"{self.name}: {found.name} is attached but {found.state.value}; unlock it and keep it awake."
            )
        return found

    def model(self, phone: Any) -> tuple[str, str]:
        """Product type and name in the shops, ``("iPhone17,2", "iPhone 16 Pro Max")``; empty where devicectl is silent.

        coremltools reads the same list and leaves both out.
        """
        if phone.udid not in self._models:
            from coremltools.models.ml_program.experimental import remote_device as rd

            with _quiet():
                try:
                    listed = rd._DeviceCtl._run_command("xcrun devicectl list devices")["result"]["devices"]
                except (rd._DeviceCtlError, ValueError, OSError, KeyError) as error:
                    raise ProfileError(f"{self.name}: devicectl could not list devices: {_said(error)}.") from None
            about: dict[str, Any] = next((d for d in listed if d.get("identifier") == phone.identifier), {})
            hardware = about.get("hardwareProperties", {})
            self._models[phone.udid] = hardware.get("productType") or "", hardware.get("marketingName") or ""
        return self._models[phone.udid]

    def _check_model(self, phone: Any) -> None:
        wanted = self.settings.model
        if not wanted:
            return
        found, name = self.model(phone)
        if found != wanted:
            raise ProfileError(
                f"{self.name}: phone.model is {wanted}, and {phone.name} is {found or 'unknown'}"
                f"{f' ({name})' if name else ''}; attach the right phone, or write a device YAML for this one."
            )

    def start(self, timeout_s: float) -> None:
        """Make the app run, installing it first where it was not; nothing if it runs already."""
        if self._session is not None and self._session.is_alive():
            return
        from coremltools.models.ml_program.experimental import remote_device as rd

        self.stop()
        remote = self._wait_for_phone()
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="phone-"))
        folder = self._folder
        self.check_app()
        with _quiet():
            try:
                if self._remote is not None:
                    session = rd._DeviceCtl.launch_app(remote, self._remote, folder)
                elif self.settings.app_path:
                    session = remote._install_and_launch_app(Path(self.settings.app_path).expanduser(), folder)
                else:
                    session = self._build(remote, folder)
            except (rd._DeviceCtlError, rd._AppBuilder.Error, ValueError, OSError) as error:
                if isinstance(error, ProfileError):
                    raise
                raise ProfileError(
                    f"{self.name}: the app could not be started: {_said(error)}; see Xcode's log."
                ) from None
            self._remote = session.installation_info
            self._session = session
            import dataclasses

            self._socket = rd._DeviceCtlSocket(device=dataclasses.replace(remote, session=session), source=SOURCE)
        self.epoch += 1

    def check_app(self) -> None:
        """Whether the app is there or could be built; so that a run says so before it lowers anything.

        Raises:
            ProfileError: the stated app is absent; or none is stated, and this is no Mac or nobody signs it.
        """
        settings = self.settings
        if settings.app_path:
            app = Path(settings.app_path).expanduser()
            if not app.exists():
                raise ProfileError(f"{self.name}: phone.app_path {app} does not exist; build it or leave it out.")
            return
        if sys.platform != "darwin":
            raise ProfileError(f"{self.name}: the app can be built on a Mac only; set phone.app_path to a built one.")
        if not (settings.development_team or settings.provisioning_profile_uuid):
            raise ProfileError(
                f"{self.name}: no signing team; set phone.development_team (Xcode > Settings > Accounts) or "
                "phone.app_path in the device's YAML."
            )

    def _build(self, remote: Any, folder: Path) -> Any:
        settings = self.settings
        from coremltools.models.ml_program.experimental import remote_device as rd

        credentials = rd.AppSigningCredentials(
            development_team=settings.development_team,
            provisioning_profile_uuid=settings.provisioning_profile_uuid or None,
            bundle_identifier=settings.bundle_identifier or None,
        )
        prepared = asyncio.run(remote.prepare_for_model_debugging(credentials, folder))
        return prepared.session

    def _wait_for_phone(self) -> Any:
        deadline = time.monotonic() + self.reconnect_s
        while True:
            try:
                return self.find()
            except ProfileError:
                if self.epoch == 0 or time.monotonic() > deadline:
                    raise
                time.sleep(self.poll_s)

    @property
    def connected(self) -> bool:
        """Whether the phone is there and answers."""
        try:
            self.find()
        except ProfileError:
            return False
        return True

    def call(
        self, method: str, params: dict[str, Any], timeout_s: float, resource: Path | None = None
    ) -> tuple[Any, Path | None]:
        """Ask the app on the phone and wait for its answer, looking after the app meanwhile.

        Raises:
            OutOfMemory: the app was killed for memory; WorkloadError: it crashed, refused, or the phone's disk is full.
            TimedOut: no answer in time; the app is stopped.
            SessionLost: the phone was unplugged; it is back, or ``start`` says that it is not.
        """
        from coremltools.models.ml_program.experimental import remote_device as rd

        request = rd._JSONRPCRequest(id=str(uuid.uuid4()), method=method, params=params)
        deadline = time.monotonic() + timeout_s
        pause = self.poll_s / 50
        sent = False
        while True:
            problem = ""
            try:
                with _quiet():
                    if not sent:
                        self._socket.send(request, resource)
                        sent = True
                    answer = self._socket.receive(request.id)
                if answer is not None:
                    if answer.error is not None:
                        raise WorkloadError(f"Core ML on the phone: {_said(answer.error.message)}")
                    return answer.result, answer.resource
            except rd._DeviceCtlError as error:
                problem = _said(error.message)
            if FULL.search(problem):
                raise WorkloadError(f"the phone's disk is full: {problem}")
            if not self._session.is_alive():
                self._bury()
            if time.monotonic() > deadline:
                self.stop()
                raise TimedOut(f"no answer to {method} within {timeout_s:g} s; the app was stopped")
            if pause >= self.poll_s and not self.connected:
                self.stop()
                raise SessionLost("the phone was unplugged")
            time.sleep(pause)
            pause = min(self.poll_s, 1.6 * pause)

    def _bury(self) -> None:
        """The app has ended: say why."""
        words = self._last_words()
        self.stop()
        if not self.connected:
            raise SessionLost("the phone was unplugged")
        if KILLED.search(words):
            raise OutOfMemory(f"the app was killed on the phone: {words or 'signal 9'}")
        raise WorkloadError(f"the app crashed on the phone{': ' + words if words else ''}")

    def _last_words(self) -> str:
        try:
            out, err = self._session._process.communicate(timeout=5)
        except (subprocess.TimeoutExpired, ValueError):
            return ""
        lines = (out + b"\n" + err).decode(errors="replace").strip().splitlines()
        return one_line(lines[-1], 160) if lines else ""

    def stop(self) -> None:
        """End the app and every process that held it open. Harmless when there is none."""
        session, self._session, self._socket = self._session, None, None
        if session is None:
            return
        self.epoch += 1
        import psutil

        try:
            parent = psutil.Process(session._process.pid)
            family = [*parent.children(recursive=True), parent]
        except psutil.NoSuchProcess:
            family = []
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        session._process.wait()
        for stream in (session._process.stdin, session._process.stdout, session._process.stderr):
            if stream is not None and not stream.closed:
                stream.close()

    def close(self) -> None:
        """Stop the app and remove what was kept on this machine."""
        self.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """coremltools logs and draws bars on its way; what went wrong comes back as an exception."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    import warnings

    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.filterwarnings("ignore", module="coremltools.*")
            yield
    finally:
        logger.setLevel(level)


def _said(message: object) -> str:
    text = message.decode(errors="replace") if isinstance(message, bytes) else str(message)
    return one_line(text.replace("ERROR:", "").strip(), 160)
