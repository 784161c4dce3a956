"""``vtc tune``: the cheapest setting that demonstrably keeps a share of the unpruned accuracy.

``split_questions`` keeps images for the confirmation apart, ``accuracy_share`` says what paired scores tell about a
share, ``successive_halving`` searches, ``confirm`` decides, ``answering`` computes what they ask for, ``tune_job`` is
the job, ``tune_report`` its words.

In: options. Out: ``vtc_config.json`` of what kept its share, or none.
Uses: eval.cost, eval.files, eval.statistics, eval.sweep, eval.tasks, eval.tasks.reading, eval.terminal, eval.vlm,
pruners, vtc.
"""
