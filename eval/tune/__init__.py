"""``vtc tune``: the cheapest setting that demonstrably keeps a share of the unpruned accuracy.

``split`` keeps images for the confirmation apart, ``shares`` says what paired scores tell about a share, ``halving``
searches, ``confirm`` decides, ``answering`` computes what they ask for, ``run`` is the job, ``report`` its words.
"""
