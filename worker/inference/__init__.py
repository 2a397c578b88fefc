"""One batch through the model, in a pool process.

In comes a claimed batch (``runner.run_batch``). Its inputs pass through validate, preprocess, predict and postprocess
(``stages``) as columns (``items``); an input that fails keeps its error, and the others go on.
Out go the results, written to the ledger in one call, and meanwhile progress and log lines (``reporting``).
"""
