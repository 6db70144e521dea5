def load(): return "stub for now"
