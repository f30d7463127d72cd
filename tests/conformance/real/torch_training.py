"""PyTorch: a network that is trained on the processor, its data loaded by two workers."""

import os

from cycles import HERE, digest, repeat

os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(HERE / "inductor")  # else it makes one in /tmp

import torch
from torch.utils.data import DataLoader, Dataset

torch.use_deterministic_algorithms(True)


class Numbers(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Made from their index."""

    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.arange(64, dtype=torch.float32).mul(index * 7 + 3).remainder(11).div(11)
        return x, x.sum().reshape(1)


def main() -> None:
    loader = DataLoader(Numbers(), batch_size=32, num_workers=2, persistent_workers=True)

    def cycle() -> str:
        torch.manual_seed(5)
        model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 1))
        optimizer = torch.optim.Adam(model.parameters())
        losses = []
        for _ in range(2):
            for x, y in loader:
                optimizer.zero_grad()
                loss = torch.nn.functional.mse_loss(model(x), y)
                loss.backward()
                optimizer.step()
                losses.append(f"{loss.item():.4f}")
        return digest(losses)

    repeat(cycle)


if __name__ == "__main__":
    main()
