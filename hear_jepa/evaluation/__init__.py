"""hear-eval-kit and linear probes on HEAR-format tasks, and the tables and plots of their results."""
