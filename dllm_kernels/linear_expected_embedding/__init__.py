from dllm_kernels.linear_expected_embedding.api import ExpectedEmbedding, linear_expected_embedding

__all__ = ["ExpectedEmbedding", "linear_expected_embedding"]
