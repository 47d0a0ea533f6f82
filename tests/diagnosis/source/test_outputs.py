"""Where the output of a forward goes: into a loss run backward, into one as a value, away, or nowhere."""

import ast

import pytest

from batchnorm.diagnosis.source.outputs import Fate, Outputs

NOWHERE = Fate(trains=False, feeds=False, leaves=False, asks=False)
TRAINS = NOWHERE._replace(trains=True, feeds=True)
CASES = {
    "net(x).sum().backward()": TRAINS,
    "loss = f(net(x))\nscaler.scale(loss).backward()": TRAINS,
    "losses = []\nfor x in y:\n    losses.append(net(x))\nsum(losses).backward()": TRAINS,
    "total = 0\nfor x in y:\n    total += net(x)\ntotal.backward()": TRAINS,
    "if a:\n    out = net(x)\nelse:\n    out = 0\nout.backward()": TRAINS,
    "descend(net(x))": TRAINS,
    "guess = net(x).detach()\nf(guess).backward()": NOWHERE._replace(feeds=True),
    "with torch.no_grad():\n    guess = net(x)\nf(guess).backward()": NOWHERE._replace(feeds=True),
    "out = net(x)\nout = 0\nf(out).backward()": NOWHERE,
    "right += (net(x).argmax(1) == y).sum()": NOWHERE,
    "net(x + d).backward()\ng = d.grad\nopt.zero_grad()": TRAINS._replace(asks=True),
    "net(x + d).backward()\ng = d.grad\nopt.step()": TRAINS,
    "net(x).backward()\ng = w.grad": TRAINS,
    "g = torch.autograd.grad(net(x), x)": NOWHERE._replace(trains=True, asks=True),
    "g = torch.autograd.grad(net(x), x, create_graph=True)[0]\ng.norm().backward()": TRAINS,
    "self.out = net(x)": NOWHERE._replace(leaves=True),
    "out = net(x)\ndef later():\n    return out": NOWHERE._replace(leaves=True),
    "return net(x)": NOWHERE._replace(leaves=True),
    "return net(x).item()": NOWHERE,
    "yield net(x)": NOWHERE._replace(leaves=True),
}


@pytest.mark.parametrize(("code", "fate"), CASES.items())
def test_the_fate_of_an_output(code, fate):
    body = ast.parse(code).body
    forward = next(
        n for s in body for n in ast.walk(s) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "net"
    )
    assert Outputs(body, [forward], frozenset({"descend"})).fate(forward) == fate
