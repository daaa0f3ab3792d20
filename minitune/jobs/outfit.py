"""What goes beside tuned weights so that other tools use them as they were trained: stop ids and the chat template."""

import json
from pathlib import Path

from minitune.chat import AnyTemplate, JinjaTemplate
from minitune.chat.export import as_jinja
from minitune.chat.recognise import DEFAULT, own_templates
from minitune.checkpoint import GENERATION
from minitune.errors import CheckpointError
from minitune.files import read_json
from minitune.models import LanguageModel
from minitune.tokenizer import Tokenizer

CHAT_TEMPLATE = "chat_template.jinja"


def outfit(folder: Path, model: LanguageModel, tokenizer: Tokenizer, template: AnyTemplate | None) -> dict[str, str]:
    """Files by name, for weights of ``folder`` tuned by ``template``; None where plain text was trained on.

    generation_config.json keeps what the folder's says, and stops on every id that the model stops on here, the
    trained end of an answer among them; chat_template.jinja is the template that was trained with.
    """
    path = folder / GENERATION
    settings = read_json(path, CheckpointError) if path.is_file() else {}
    if tokenizer.bos_id is not None:
        settings.setdefault("bos_token_id", tokenizer.bos_id)
    ids = list(model.stop_ids)
    settings["eos_token_id"] = ids[0] if len(ids) == 1 else ids
    files = {GENERATION: json.dumps(settings, indent=2, ensure_ascii=False) + "\n"}
    if template is None:
        return files
    if isinstance(template, JinjaTemplate):
        if own_templates(tokenizer.files).get(DEFAULT) != template.source:
            files[CHAT_TEMPLATE] = template.source
    else:
        files[CHAT_TEMPLATE] = as_jinja(template, start=tokenizer.bos_id is not None)
    return files
