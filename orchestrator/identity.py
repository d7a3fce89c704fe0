"""Names and digests that identify content: of backbones, cells, jobs. No torch, ray, mlflow."""

import hashlib
import json
import re
from dataclasses import asdict
from typing import Any

from backbones.spec import BackboneSpec


def backbone_slug(spec: BackboneSpec) -> str:
    """A backbone's name in file names. A folder's name is not its content, so it is no part of it."""
    name = f"hf-{spec.family}" if spec.folder and spec.is_reference else spec.backbone_id
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[-48:]


def backbone_identity(spec: BackboneSpec) -> str:
    """A backbone's content: for a folder the digest of its files, whatever the folder is called."""
    facts = {**asdict(spec), "weights_digest": spec.weights_digest}
    if spec.extra_tokens == 0:
        del facts["extra_tokens"]  # younger than many a stored cell, whose identity must not change
    if spec.vision is None:
        del facts["vision"]  # likewise
    if spec.weights_digest is not None:
        facts |= {"backbone_id": "", "hf_hub_path": ""}
    return content_hash(facts)


def content_hash(document: Any) -> str:
    """SHA-256 of plain data, 64 hex digits."""
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
