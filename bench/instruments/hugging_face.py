"""The embedded model as a folder that vLLM loads: python hugging_face.py MODEL.gguf FOLDER

Runs in vLLM's own environment, which needs `gguf` and `accelerate` besides. Weights become bfloat16, which is what vLLM
computes in on a CPU; the tokenizer and the chat template are those of the file.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(source: Path, folder: Path) -> None:
    """Write the folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name).to(torch.bfloat16)
    # What was read is no longer quantized; the library refuses to save a model that says it is.
    model.hf_quantizer = model.quantization_method = None
    del model.config.quantization_config
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
