from dllm_kernels.block_schedule.api import advance_rows, list_candidates, place_proposals
from dllm_kernels.block_schedule.tables import BlockSchedule, Candidates, CurrentBlock

__all__ = ["BlockSchedule", "Candidates", "CurrentBlock", "advance_rows", "list_candidates", "place_proposals"]
