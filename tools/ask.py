"""Asks models in Hugging Face folders a question, in plain transformers: `python -m tools.ask QUESTION FOLDER...`."""

import argparse
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("question")
    parser.add_argument("folders", type=Path, nargs="+", metavar="folder")
    parser.add_argument("--tokens", type=int, default=60, help="the longest answer")
    arguments = parser.parse_args()
    disable_progress_bar()
    print(f"Question: {arguments.question}")
    for folder in arguments.folders:
        print(f"\n{folder}:\n{answer(folder, arguments.question, arguments.tokens)}")


def answer(folder: Path, question: str, tokens: int) -> str:
    """What the model says at temperature 0, up to the end of its turn. The folder has a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    turns = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**prompt, max_new_tokens=tokens, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


if __name__ == "__main__":
    main()
