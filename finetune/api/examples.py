"""Programs that use the REST service, ready to be copied: train, wait, download the LoRA, draw an image with it.

Pure text, separate from the page that shows them. Whatever was typed into the form stands in them as a text of their
language, so it can neither break a program nor add to it. The secret of a webhook is never written out.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from finetune import captions, inputs, registry
from finetune.inputs import Mode, Request

KEY = "YOUR_KEY"
"""What stands where a key belongs."""
SECRET = "YOUR_WEBHOOK_SECRET"
USUAL = {"finetune_comment": "my-first-finetune", "mode": "general"}
ENDPOINT = "flux-2-klein-base-4b-finetuned"

CURL = r"""# For bash. The pictures lie beside it, in pictures.zip.
(
set -e
@settings@

# What goes wrong is said in words, and ends the program.
ask() {
  answer=$(curl -sS --fail-with-body -H "x-key: $key" "$@") || { echo "$answer" >&2; exit 1; }
}
save() { curl -sS --fail -H "x-key: $key" "$@"; }
field() { sed -E "s/.*\"$1\": *\"([^\"]+)\".*/\1/" <<< "$answer"; }
wait_for() {
  while ask "$root/v1/get_result?id=$1"; [[ $answer == *'"Pending"'* ]]; do sleep 5; done
  echo "$answer"
  [[ $answer == *'"Ready"'* ]]
}

# Train.
ask "$root/v1/finetune" -F file_data=@pictures.zip "${fields[@]}"
finetune=$(field finetune_id)
echo "finetune $finetune"
wait_for "$finetune"

# The LoRA for diffusers, and the one for ComfyUI.
ask "$root/v1/finetunes/$finetune/files"
for url in $(grep -oE 'http[^"]+\.safetensors[^"]*' <<< "$answer"); do save -OJ "$url"; done

# An image.
ask "$root/v1/@endpoint@" -H "Content-Type: application/json" --data "{\"finetune_id\": \"$finetune\", $image}"
wait_for "$(field id)"
save -o image.jpg "$(field sample)"
)
"""

PYTHON = '''"""Needs nothing but Python. The pictures lie beside it, in pictures.zip."""

import base64
import json
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

@settings@


def fetch(url, body=None):
    headers = {"x-key": KEY, "Content-Type": "application/json"}
    try:
        with urlopen(Request(url, body and json.dumps(body).encode(), headers)) as answer:
            return answer.read()
    except HTTPError as error:
        raise SystemExit(f"{error.code}: {error.read().decode()}")


def ask(path, body=None):
    return json.loads(fetch(ROOT + path, body))


def wait_for(id):
    while (answer := ask(f"/v1/get_result?id={id}"))["status"] == "Pending":
        time.sleep(5)
    if answer["status"] != "Ready":
        raise SystemExit(f"{answer['status']}: {answer['details']}")
    return answer["result"]


def save(url, name):
    with open(name, "wb") as file:
        file.write(fetch(url))


# Train.
with open("pictures.zip", "rb") as file:
    pictures = base64.b64encode(file.read()).decode()
finetune = ask("/v1/finetune", {**FIELDS, "file_data": pictures})["finetune_id"]
print("finetune", finetune)
wait_for(finetune)

# The LoRA for diffusers, and the one for ComfyUI.
for file in ask(f"/v1/finetunes/{finetune}/files")["files"]:
    if file["name"].endswith(".safetensors"):
        save(file["url"], file["name"])

# An image.
task = ask("/v1/@endpoint@", {**IMAGE, "finetune_id": finetune})
save(wait_for(task["id"])["sample"], "image.jpg")
'''

JAVASCRIPT = """// Node 18 or newer: save it as finetune.mjs. The pictures lie beside it, in pictures.zip.
import { readFile, writeFile } from "node:fs/promises";

@settings@

const get = async (url, about = {}) => {
  const answer = await fetch(url, { ...about, headers: { "x-key": key, ...about.headers } });
  if (!answer.ok) throw new Error(`${answer.status}: ${await answer.text()}`);
  return answer;
};

const ask = async (path, about) => (await get(root + path, about)).json();

const waitFor = async (id) => {
  for (;;) {
    const { status, result, details } = await ask(`/v1/get_result?id=${id}`);
    if (status === "Ready") return result;
    if (status !== "Pending") throw new Error(`${status}: ${JSON.stringify(details)}`);
    await new Promise((resolve) => setTimeout(resolve, 5000));
  }
};

const save = async (url, name) => writeFile(name, Buffer.from(await (await get(url)).arrayBuffer()));

// Train.
const form = new FormData();
form.append("file_data", new Blob([await readFile("pictures.zip")]), "pictures.zip");
for (const [name, value] of fields) form.append(name, value);
const { finetune_id: finetune } = await ask("/v1/finetune", { method: "POST", body: form });
console.log("finetune", finetune);
await waitFor(finetune);

// The LoRA for diffusers, and the one for ComfyUI.
const { files } = await ask(`/v1/finetunes/${finetune}/files`);
for (const { name, url } of files) if (name.endsWith(".safetensors")) await save(url, name);

// An image.
const { id } = await ask("/v1/@endpoint@", {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({ ...image, finetune_id: finetune }),
});
await save((await waitFor(id)).sample, "image.jpg");
"""


def write(root: str, values: Mapping[str, Any], key: str = "") -> dict[str, str]:
    """Programs for the service at `root`, by language, with those values that are not the usual ones."""
    asked = _asked(values)
    image = {"prompt": _prompt(asked)}
    settings = {
        "curl": (CURL, _in_shell(root, key, asked, image)),
        "Python": (PYTHON, _in_python(root, key, asked, image)),
        "JavaScript": (JAVASCRIPT, _in_javascript(root, key, asked, image)),
    }
    return {
        language: program.replace("@endpoint@", ENDPOINT).replace("@settings@", lines)
        for language, (program, lines) in settings.items()
    }


def _prompt(asked: Mapping[str, Any]) -> str:
    """What to draw: a thing that the base model knows, in the style that is learned, else the subject."""
    mode, trigger = (
        Mode(_known_mode(asked)),
        str(asked.get("trigger_word", Request.model_fields["trigger_word"].default)),
    )
    base = registry.base_models().get(asked.get("base_model", Request.model_fields["base_model"].default))
    prompts = captions.sample_prompts(mode, trigger, [], (), base.sample_things if base else (), 2)
    return (prompts or [captions.plain(mode, trigger)])[0]


def _asked(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the form says beyond the defaults; what is wrong stays as it was typed, for the service to say so."""
    said = {name: value for name, value in values.items() if value not in (None, "", (), [])}
    said = {**USUAL, **said, **({"webhook_secret": SECRET} if said.get("webhook_secret") else {})}
    wrong = inputs.check(said)
    right = {name: value for name, value in said.items() if name not in wrong}
    made = Request(**{**USUAL, **right}).model_dump(mode="json")
    usual = Request(**USUAL).model_dump(mode="json")
    return {
        name: made[name] if name in right else said[name]
        for name in said
        if name in wrong or name in USUAL or made[name] != usual[name]
    }


def _known_mode(asked: Mapping[str, Any]) -> str:
    return asked["mode"] if asked["mode"] in list(Mode) else USUAL["mode"]


def _in_shell(root: str, key: str, asked: Mapping[str, Any], image: Mapping[str, str]) -> str:
    fields = "\n".join(f"  --form-string {_shell(f'{name}={value}')}" for name, value in _form(asked))
    drawn = json.dumps(image, ensure_ascii=False)[1:-1]
    return f"root={_shell(root)}\nkey={_shell(key)}\nfields=(\n{fields}\n)\nimage={_shell(drawn)}"


def _in_python(root: str, key: str, asked: Mapping[str, Any], image: Mapping[str, str]) -> str:
    fields = "\n".join(f"    {_python(name)}: {_python(value)}," for name, value in asked.items())
    drawn = ", ".join(f"{_python(name)}: {_python(value)}" for name, value in image.items())
    return f"ROOT = {_python(root)}\nKEY = {_python(key)}\nFIELDS = {{\n{fields}\n}}\nIMAGE = {{{drawn}}}"


def _in_javascript(root: str, key: str, asked: Mapping[str, Any], image: Mapping[str, str]) -> str:
    fields = "\n".join(f"  [{_javascript(name)}, {_javascript(value)}]," for name, value in _form(asked))
    drawn = ", ".join(f"{name}: {_javascript(value)}" for name, value in image.items())
    lines = f"const root = {_javascript(root)};\nconst key = {_javascript(key)};\n"
    return f"{lines}const fields = [\n{fields}\n];\nconst image = {{ {drawn} }};"


def _form(asked: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Fields as a form carries them: all text, and a list as a field that comes several times."""
    return [
        (name, one if isinstance(one, str) else json.dumps(one))
        for name, value in asked.items()
        for one in (value if isinstance(value, list | tuple) else [value])
    ]


def _shell(text: str) -> str:
    """A word of bash."""
    if re.fullmatch(r"[\w@%+=:,./-]+", text, re.ASCII):
        return text
    if text.isprintable():
        return "'" + text.replace("'", r"'\''") + "'"
    return "$'" + "".join(_shell_character(character) for character in text) + "'"


def _shell_character(character: str) -> str:
    """One of a text in which some cannot be printed, and would be lost when it is copied."""
    if character in "\\'":
        return f"\\{character}"
    encoded = character.encode("utf-8", "replace")
    return character if character.isprintable() else "".join(f"\\x{byte:02x}" for byte in encoded)


def _python(value: Any) -> str:
    """A literal of Python."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_python(one) for one in value)}]"
    return _text(value, "\\U{:08x}") if isinstance(value, str) else repr(value)


def _javascript(text: str) -> str:
    """A literal of JavaScript that is also safe in the middle of a page."""
    return _text(text, "\\u{{{:x}}}").replace("<", "\\u003c")


def _text(text: str, escape: str) -> str:
    """A text between double quotes, in which what cannot be printed is written as `escape` has it."""
    written = json.dumps(text, ensure_ascii=False)
    return "".join(one if one.isprintable() else escape.format(ord(one)) for one in written)
