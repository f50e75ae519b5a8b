"""What stands on the PATH in place of Xcode's programs, and the app that answers on the stand-in phone.

Run without site packages and with few imports, so that each call is quick.
"""

import ast
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(os.environ.get("STANDIN_ROOT", "."))


def option(arguments, *names):
    for i, text in enumerate(arguments):
        for name in names:
            if text == name:
                return arguments[i + 1]
            if text.startswith(name + "="):
                return text.split("=", 1)[1]
    return None


def finish(arguments, result):
    target = option(arguments, "-j", "--json-output")
    if target:
        Path(target).write_text(json.dumps({"info": {"outcome": "success"}, "result": result}))
    sys.exit(0)


def fail(words):
    sys.stderr.write(f"ERROR: {words}\n")
    sys.exit(1)


def behaviour(phone):
    return json.loads((phone / "behaviour.json").read_text())


def plugged(phone):
    mark = phone / "unplugged_until"
    return not mark.exists() or float(mark.read_text()) < time.time()


def model_name(package):
    from hashlib import sha256

    digest = sha256()
    for file in sorted(package.rglob("*")):
        if file.suffix in (".bin", ".mlmodel"):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def devicectl(arguments):
    phones = sorted((ROOT / "phones").iterdir())
    if arguments[:2] == ["list", "devices"]:
        finish(arguments, {"devices": [describe(phone) for phone in phones if plugged(phone)]})
    phone = ROOT / "phones" / option(arguments, "-d", "--device")[len("ID-") :]
    if not plugged(phone):
        fail("The device is not connected.")
    with (phone / "calls.log").open("a") as log:
        log.write(" ".join(arguments[:3]) + "\n")
    if arguments[:3] == ["device", "install", "app"]:
        finish(arguments, {"installedApplications": [{"bundleID": "com.example.runner", "databaseUUID": "0"}]})
    if arguments[:3] == ["device", "process", "launch"]:
        serve(phone)
    container = phone / "container"
    source, target = option(arguments, "--source"), option(arguments, "--destination")
    if arguments[:3] == ["device", "copy", "to"]:
        if behaviour(phone)["full"]:
            fail("The operation could not be completed. No space left on device")
        source, target = Path(source), container / target
    elif arguments[:3] == ["device", "copy", "from"]:
        source, target = container / source, Path(target)
    else:
        fail(f"unknown: {arguments}")
    if not source.exists():
        fail("file not found on device")
    target.parent.mkdir(parents=True, exist_ok=True)
    copy_tree(source, target)
    finish(arguments, {"source": str(source), "destination": str(target)})


def copy_tree(source, target):
    if source.is_dir():
        for inside in source.iterdir():
            copy_tree(inside, target / inside.name)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    part.write_bytes(source.read_bytes())
    os.replace(part, target)


def describe(phone):
    how = behaviour(phone)
    return {
        "identifier": f"ID-{phone.name}",
        "deviceProperties": {
            "name": f"Phone {phone.name}",
            "osVersionNumber": "18.5",
            "osBuildUpdate": "22F76",
            "developerModeStatus": how["developer_mode"],
        },
        "hardwareProperties": {
            "deviceType": "iPhone",
            "udid": f"UDID-{phone.name}",
            "productType": how["product_type"],
            "marketingName": how["marketing_name"],
        },
        "connectionProperties": {"tunnelState": how["tunnel"]},
    }


def serve(phone):
    """The app: answers requests in its container until it is killed, its cable is pulled or it dies of a model."""
    import random

    root = phone / "container" / "Documents" / "modelrunnerd"
    # Requests that an earlier life of the app took are not taken again; one that came while it was starting is.
    taken = phone / "taken.log"
    seen = set(map(Path, taken.read_text().splitlines())) if taken.exists() else set()
    models, heat, count = {}, 0.0, {}
    known = set()
    rng = random.Random(len((phone / "calls.log").read_text()))
    footprint(phone, 50_000_000, 300_000_000)
    while plugged(phone):
        for path in root.glob("requests/messages/*/message.json"):
            if path in seen:
                continue
            seen.add(path)
            with taken.open("a") as log:
                log.write(f"{path}\n")
            how = behaviour(phone)
            message = json.loads(path.read_text())
            name, asked, identity = message["method"].split(".")[1], message["params"], message["id"]
            resource = root / "requests" / "resources" / identity / message.get("resource", "none")
            answer, data, error = {"modelID": asked["modelID"]}, None, None
            if name == "Load":
                model = model_name(resource)
                models[asked["modelID"]] = model
                time.sleep(how["load_s"])
                footprint(phone, 52_000_000, 310_000_000)
                answer["duration"] = 200_000_000 if model not in known else 10_000_000
                known.add(model)
            elif asked["modelID"] not in models:
                respond(root, identity, error={"code": -32001, "message": "model not loaded"})
                continue
            elif name == "Prediction":
                model = models[asked["modelID"]]
                count[model] = count.get(model, 0) + 1
                if matches(how["hang_on"], model):
                    with (phone / "hangs").open("a") as file:
                        file.write("x")
                    continue
                if matches(how["refuse_on"], model):
                    error = {"code": -32002, "message": "prediction failed"}
                if (
                    matches(how["die_on"], model)
                    and count[model] > how["die_after"]
                    and deaths(phone) < how["die_times"]
                ):
                    with (phone / "deaths").open("a") as file:
                        file.write("x")
                    print(how["die_words"], flush=True)
                    os._exit(1)
                if how["unplug_after"] and predictions(phone) == how["unplug_after"]:
                    (phone / "unplugged_until").write_text(str(time.time() + how["unplugged_s"]))
                    os._exit(1)
                app, engine = needs(model)
                footprint(phone, 52_000_000 + app * 10**6, 310_000_000 + engine * 10**6)
                heat = min(1.0, heat + 0.06)
                truth = 1 + int(model, 16) % 1000 / 100
                latency = truth * (1 + how["noise"] * rng.gauss(0, 1)) * (1 + how["heat"] * heat)
                answer["duration"] = int(latency * 1e6)
                answer["outputs"], data = outputs(model, how["lie"] or how["lie_on"] == asked["computeUnits"], asked)
            elif name == "ComputePlan":
                usage = [("neuralEngine", {"totalCoreCount": 16})] * 3 + [("cpu", {})]
                answer["infos"] = [
                    {"deviceUsage": {"preferred": {unit: more}, "supported": [{unit: more}]}, "estimatedCost": 0.25}
                    for unit, more in usage
                ]
            elif name == "Unload":
                models.pop(asked["modelID"])
            (phone / "loaded.json").write_text(json.dumps(sorted(models.values())))
            respond(root, identity, result=None if error else answer, error=error, data=None if error else data)
        time.sleep(0.005)
    sys.exit(1)


def matches(wanted, model):
    return wanted == "*" or wanted == model


def deaths(phone):
    mark = phone / "deaths"
    return len(mark.read_text()) if mark.exists() else 0


def predictions(phone):
    mark = phone / "predictions"
    done = (int(mark.read_text()) if mark.exists() else 0) + 1
    mark.write_text(str(done))
    return done


def outputs(model, lie, asked):
    import struct

    known = ROOT / "outputs" / f"{model}.npy"
    if known.exists() and not lie:
        raw = known.read_bytes()
        size = struct.unpack("<H", raw[8:10])[0]
        header = ast.literal_eval(raw[10 : 10 + size].decode().strip())
        shape, data = list(header["shape"]), raw[10 + size :]
    else:
        first = next(iter(asked["inputs"].values()))
        shape = first["shape"]
        data = b"\0" * first["storage"]["size"]
    strides, step = [], 1
    for extent in reversed(shape):
        strides.insert(0, step)
        step *= extent
    storage = {"offset": 0, "size": len(data)}
    return {"y": {"shape": shape, "strides": strides, "dataType": "Float16", "storage": storage}}, data


def respond(root, identity, result=None, error=None, data=None):
    part = root / "responses" / f".{identity}"
    part.mkdir(parents=True, exist_ok=True)
    message = {"jsonrpc": "2.0", "id": identity}
    if result is not None:
        message["result"] = result
    if error is not None:
        message["error"] = error
    if data is not None:
        (part / "outputs.bin").write_bytes(data)
        message["resource"] = "outputs.bin"
    (part / "message.json").write_text(json.dumps(message))
    os.replace(part, root / "responses" / identity)


def footprint(phone, app, engine):
    """What the phone's processes take now, in bytes."""
    part = phone / ".footprint"
    part.write_text(json.dumps({"ModelRunner": app, "aned": engine, "SpringBoard": 90_000_000}))
    os.replace(part, phone / "footprint.json")


def needs(model):
    """The hidden truth: what a model's prediction takes in the app and on the Neural Engine, in MB."""
    return 5 + int(model[:4], 16) % 40, 10 + int(model[4:], 16) % 80


def pymobiledevice3(arguments):
    phone = ROOT / "phones" / option(arguments, "--udid")[len("UDID-") :]
    if behaviour(phone)["no_tunnel"]:
        print("Trying a tunnel", flush=True)
        fail("Device is not reachable; start tunneld as root")
    assert arguments[:7] == ["developer", "dvt", "sysmon", "process", "monitor", "threshold", "0"], arguments
    with open(option(arguments, "-o"), "a") as out:
        while True:
            state = json.loads((phone / "footprint.json").read_text())
            for pid, (name, size) in enumerate(state.items()):
                out.write(json.dumps({"pid": pid, "name": name, "physFootprint": size, "timestamp": "now"}) + "\n")
            out.flush()
            time.sleep(0.02)


def coremlcompiler(arguments):
    source, target = Path(arguments[1]), Path(arguments[2])
    copy_tree(source, target / source.with_suffix(".mlmodelc").name)


if __name__ == "__main__":
    tool, rest = sys.argv[1], sys.argv[2:]
    if tool == "xcrun":
        tool, rest = rest[0], rest[1:]
    {"devicectl": devicectl, "coremlcompiler": coremlcompiler, "pymobiledevice3": pymobiledevice3}[tool](rest)
