"""An HTTP server with OpenAI's API for masked-diffusion language models: `dllm serve`.

A request's tokens depend on its body and on what the server was started with, never on other requests.

What there is, in the order of a request:
    command.py    the options of `dllm serve`, and the process: start, signals, drain
    guard.py      what every request must pass before its body is read: host, origin, key, content type
    json_objects.py, bodies.py   the fields of bodies, which are honoured or refused by name
    prompts.py    token ids of messages and texts
    engine.py     what is served; a checked body becomes rows to denoise
    orders.py     a body with all its rows
    waiting.py, tickets.py, groups.py, batcher.py   rows that wait, rows that run, and the thread that runs them
    serving.py    a request's way: queued, waited for, given up where its client leaves
    answers.py    what the thread tells of a row, kept for the event loop
    text.py       the text of tokens that are final, and stops
    shapes.py     OpenAI's objects
    frames.py, streams.py   events as they come: text, frames, ends
    api.py, process.py      routes, metrics and errors; the process that serves them
"""
