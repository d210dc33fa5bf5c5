from .callback import WarmupGuard as WarmupGuard
