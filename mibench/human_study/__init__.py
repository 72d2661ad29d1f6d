"""Does a person, or a vision-language model, see the same person? Blinded pairs, answers, and what they amount to.

`questions` makes the pairs, `server` shows them on a local page, `exchange` writes them out for another program and
reads its answers, `answers` keeps all answers and sums them up.
"""
