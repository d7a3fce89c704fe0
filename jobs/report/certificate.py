"""A certificate as a page: one file that needs nothing else, neither network nor JavaScript."""

from collections.abc import Mapping
from typing import Any

from jobs.report.html import environment
from jobs.report.palette import COLOURS

__all__ = ["certificate_sentence", "render_certificate"]


def render_certificate(certificate: Mapping[str, Any]) -> str:
    """The page of a certificate; the same certificate always gives the same text."""
    passed, sentence = certificate_sentence(certificate)
    template = environment().get_template("certificate.html.j2")
    return template.render(colours=COLOURS, certificate=certificate, passed=passed, sentence=sentence)


def certificate_sentence(certificate: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether every proof passed, and that as a sentence."""
    proofs = certificate["proofs"]
    failed = [proof["name"] for proof in proofs if proof["status"] == "FAILED"]
    if failed:
        return False, f"Not certified: the proof “{failed[0]}” failed."
    return True, f"Certified: all {len(proofs)} proofs passed."
