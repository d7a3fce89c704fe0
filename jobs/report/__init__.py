"""The report of a comparison or a finetune: `report.json` in, one self-contained `report.html` out."""
