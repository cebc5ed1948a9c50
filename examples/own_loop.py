"""Your own training loop around MetaMorph's model, packing and losses.

A question about a picture, and a request that a picture answers, in one packed row. The model is a
small random Llama joined to the toy encoder that ships: folders of a pretrained Llama and SigLIP do
as well.
"""

from pathlib import Path

import torch
from PIL import Image

from metamorph.data.conversation import ChatEncoder, Sample, Turn
from metamorph.data.packing import TargetCounts, pack_row
from metamorph.model.opening import assemble
from metamorph.quickstart.run import ASSETS, build_start
from metamorph.training.batch import Batch
from metamorph.training.language_stage import batch_losses

folder = Path("runs/own_loop")
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
build_start(folder / "llama", seed=0)
model, tokenizer = assemble(folder / "llama", ASSETS / "encoder", grid=4)
model.to(device)  # its encoder is frozen
encoder = ChatEncoder(tokenizer, model.config.tokens_per_image, model.config.prompt_images)

picture = Image.open(Path(__file__).parent / "pictures" / "a green circle.png")
question = (Turn("user", "<image>What colour is it?"), Turn("assistant", "Green."))
request = (Turn("user", "Generate an image of a circle."), Turn("assistant", "Here: <image>"))
samples = [Sample("question", question, (picture,)), Sample("request", request, (picture,))]

trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-3)
for step in range(10):
    documents = [encoder.encode(sample) for sample in samples]
    rows = [pack_row(documents, 128, model.config.pad_id)]  # a list: a step may have several
    counts = TargetCounts.of(rows)  # losses are means over the targets of the whole step
    text_loss = visual_loss = 0.0
    for row in rows:
        losses, _ = batch_losses(model, Batch.of(row, model.vision, device), counts)
        (losses.text + losses.visual).backward()
        text_loss, visual_loss = text_loss + losses.text, visual_loss + losses.visual
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step} text loss {text_loss:.3f} cosine {1 - visual_loss:.3f}")
model.save_pretrained(folder / "model", tokenizer)
