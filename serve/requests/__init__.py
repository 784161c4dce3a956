"""What clients send, read and checked before any of it comes near the model.

In: bytes from the network.
Out: `ChatRequest`, `Choice`, pictures; or a `Refusal` in words.
Uses: eval.tasks.media, eval.vlm, pruners, vtc.
"""
