"""The ops in somebody else's model: PyTorch and metamorph_kernels, nothing else.

A small transformer reads packed documents, learns the next token of each, and to name the feature
vector that stands behind its last token. Nothing here knows of MetaMorph.
"""

import torch
import torch.nn.functional as F
from torch import nn

from metamorph_kernels import cosine_loss, interval_attention, key_intervals, linear_cross_entropy

VOCABULARY, WIDTH, HEADS, KEY_HEADS, FEATURE = 100, 64, 4, 2, 16
HEAD_WIDTH = WIDTH // HEADS


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * KEY_HEADS) * HEAD_WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x, intervals):  # x [T, WIDTH]: one packed row, no batch dimension
        heads = self.qkv(F.rms_norm(x, (WIDTH,))).unflatten(-1, (-1, HEAD_WIDTH))
        q, k, v = heads.split((HEADS, KEY_HEADS, KEY_HEADS), dim=1)  # [T, heads, HEAD_WIDTH]
        x = x + self.mix(interval_attention(q, k, v, intervals).flatten(1))
        return x + self.down(F.silu(self.up(F.rms_norm(x, (WIDTH,)))))


torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
embedding, head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, FEATURE)
blocks = nn.ModuleList(Block() for _ in range(2))
model = nn.ModuleList([embedding, head, blocks]).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

lengths = [12, 7, 30, 15]  # documents, one after another in a row of 64 tokens
tokens = torch.randint(VOCABULARY, (sum(lengths),), device=device)
last = torch.tensor(lengths, device=device).cumsum(0) - 1  # of each document
labels = tokens.roll(-1)
labels[last] = -100  # what follows is another document
features = torch.randn(len(lengths), FEATURE, device=device)
# No document sees another; the first five tokens of the third see each other both ways.
intervals = key_intervals(lengths, bidirectional_spans=[(19, 24)], device=device)
labels[19:23] = -100  # they see what would follow

for step in range(30):
    x = embedding(tokens)
    for block in blocks:
        x = block(x, intervals)
    text = linear_cross_entropy(x, embedding.weight, labels)  # logits never whole in memory
    visual = cosine_loss(head(x[last]), features)
    (text + visual).backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 9:
        print(f"step {step + 1} text loss {text:.3f} cosine {1 - visual:.3f}")
