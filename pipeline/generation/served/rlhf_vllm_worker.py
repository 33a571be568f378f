"""What a vLLM server's workers learn for PPO; runs in vLLM's environment, needs nothing of ours.

vLLM imports it by `--worker-extension-cls rlhf_vllm_worker.PolicyWeights`, with this folder on
PYTHONPATH, and mixes the class into its worker (vLLM 0.32).
"""

from __future__ import annotations

from typing import Any


class PolicyWeights:
    """Calls for `/collective_rpc`."""

    def describe_policy(self) -> dict[str, Any]:
        """Return the model's shape and which log-probabilities requests get."""
        worker: Any = self
        config = worker.model_config.hf_text_config
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        shape = {name: getattr(config, name) for name in names if hasattr(config, name)}
        return {"shape": shape, "logprobs_mode": str(worker.model_config.logprobs_mode)}

    def take_policy(self, weights_path: str) -> None:
        """Read weights from a folder of safetensors into the running model."""
        worker: Any = self
        worker.reload_weights(weights_path=weights_path)
        # On a CPU vLLM multiplies by repacked copies of the weights. A head tied to the embedding
        # is in no checkpoint, so that reloading leaves its copy as it was.
        head = getattr(worker.get_model(), "lm_head", None)
        method = getattr(head, "quant_method", None)
        if method is not None:
            method.process_weights_after_loading(head)
