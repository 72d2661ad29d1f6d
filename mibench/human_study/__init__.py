"""Does a person, or a vision-language model, see the same person? Blinded questions, answers, and what they amount to.

`questions` chooses the images, `forms` says how they are asked about, `sheets` draws them, `server` shows them on a
local page, `exchange` writes them out for another program and reads its answers, `answers` keeps all answers and sums
them up, beside what networks said of the same images (`verdicts`).
"""
