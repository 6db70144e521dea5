"""A Trainer whose compute_loss takes cross-entropy of logits.transpose(1, 2), and the one line that makes it faster.

python examples/dropin/trainer_compute_loss.py [--model PATH] [--steps 8]
"""

import tempfile

import torch
import torch.nn.functional as F
from tiny import arguments, model_and_tokens
from transformers import Trainer, TrainingArguments

import dllm.fast


class DiffusionTrainer(Trainer):
    mask_id = None

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        ids = inputs["input_ids"]
        t = torch.rand(len(ids), 1, device=ids.device) * 0.999 + 0.001
        masked = torch.rand(ids.shape, device=ids.device) < t
        outputs = model(input_ids=ids.masked_fill(masked, self.mask_id))
        nll = F.cross_entropy(outputs.logits.transpose(1, 2), ids, reduction="none")
        loss = (nll * masked / t).sum() / ids.numel()
        return (loss, outputs) if return_outputs else loss


def main(argv=None):
    options = arguments(__doc__, argv)
    model, ids, mask_id = model_and_tokens(options.model)
    dllm.fast.patch(model)  # the one line
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            max_steps=options.steps,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
        )
        trainer = DiffusionTrainer(model, settings, train_dataset=[{"input_ids": row, "labels": row} for row in ids])
        trainer.mask_id = mask_id
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    main()
