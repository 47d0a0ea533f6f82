"""States, files and layers without running statistics."""

WRONG = {
    "BN420": [
        (
            """\
def load(path):
    model = Net()
    state = torch.load(path)
    state = {k: v for k, v in state.items() if 'running' not in k and 'num_batches' not in k}
    model.load_state_dict(state, strict=False)
    model.eval()
    return model
""",
            "warning",
        ),
        (
            """\
def load(path):
    model = Net()
    state = torch.load(path)
    for k in list(state):
        if 'running_' in k:
            del state[k]
    model.load_state_dict(state, strict=False)
    model.eval()
    return model
""",
            "warning",
        ),
        (
            """\
def load(path):
    model = Net()
    state = torch.load(path)
    new = {}
    for k, v in state.items():
        if 'running_mean' in k or 'running_var' in k:
            continue
        new[k] = v
    model.load_state_dict(new, False)
    model.eval()
    return model
""",
            "warning",
        ),
        (
            """\
def load(path):
    model = Net()
    state = torch.load(path)
    state = {k: state[k] for k in state if not k.endswith(('running_mean', 'running_var'))}
    model.load_state_dict(state, strict=False)
    model.eval()
    return model
""",
            "warning",
        ),
        (
            """\
def load(path):
    model = Net()
    state = torch.load(path)
    for k in [k for k in state.keys() if 'running_mean' in k or 'running_var' in k]:
        state.pop(k)
    model.load_state_dict(state, strict=False)
    model.eval()
    return model
""",
            "warning",
        ),
        (
            """\
def save(model, path):
    torch.save({k: v for k, v in model.state_dict().items() if 'running' not in k}, path)
""",
            "note",
        ),
        (
            """\
def load(path):
    model = Net()
    state = torch.load(path)
    own = model.state_dict()
    for name, value in state.items():
        if 'running' not in name:
            own[name].copy_(value)
    model.eval()
    return model
""",
            "note",
        ),
        (
            """\
def save(model, path):
    torch.save({n: p.data for n, p in model.named_parameters()}, path)
save(Net(), 'a')
""",
            "warning",
        ),
        (
            """\
def main(loader):
    model = Net()
    torch.save(dict(model.named_parameters()), 'weights.pt')
""",
            "warning",
        ),
        (
            """\
def main(loader):
    model = Net()
    torch.save([p.detach().cpu() for p in model.parameters()], 'weights.pt')
""",
            "warning",
        ),
        (
            """\
def main(loader):
    model = Net()
    torch.save({'epoch': 3, 'model': {n: p.clone() for n, p in model.named_parameters()}}, 'weights.pt')
""",
            "warning",
        ),
    ],
    "BN442": [
        (
            """\
def load(path):
    model = Net()
    weights = torch.load(path)
    for n, p in model.named_parameters():
        p.data.copy_(weights[n])
    model.eval()
    return model
""",
            "warning",
        ),
        (
            """\
def load(path):
    model = Net()
    for p, w in zip(model.parameters(), torch.load(path)):
        p.data = w
    model.eval()
    with torch.no_grad():
        return model(torch.rand(1, 3, 8, 8))
""",
            "warning",
        ),
        (
            """\
def prune(model, keep):
    new = Net(c=len(keep))
    for a, b in zip(model.modules(), new.modules()):
        if isinstance(a, nn.BatchNorm2d):
            b.weight.data = a.weight.data[keep].clone()
            b.bias.data = a.bias.data[keep].clone()
        elif isinstance(a, nn.Conv2d):
            b.weight.data = a.weight.data[keep].clone()
    return new
""",
            "note",
        ),
    ],
}
RIGHT = [
    """\
def load(path):
    model = Net()
    state = torch.load(path)
    state = {k: v for k, v in state.items() if 'num_batches_tracked' not in k}
    model.load_state_dict(state, strict=False)
    model.eval()
    return model
""",
    """\
def load(path):
    model = Net()
    state = torch.load(path)
    state = {k: v for k, v in state.items() if 'fc' not in k}
    model.load_state_dict(state, strict=False)
    model.eval()
    return model
""",
    """\
def load(path):
    model = Net()
    state = torch.load(path)
    state = {k.replace('module.', ''): v for k, v in state.items()}
    model.load_state_dict(state)
    model.eval()
    return model
""",
    """\
def load(path):
    model = Net()
    state = torch.load(path)
    for k, v in state.items():
        if 'running_mean' in k:
            print(k, v.mean())
    model.load_state_dict(state)
    model.eval()
    return model
""",
    """\
def load(path):
    model = Net()
    state = torch.load(path)
    only = {k: v for k, v in state.items() if 'running' in k}
    model.load_state_dict(only, strict=False)
    model.eval()
    return model
""",
    """\
def load(path):
    model = Net()
    state = torch.load(path)
    for k in list(state):
        if 'num_batches_tracked' in k:
            del state[k]
    model.load_state_dict(state, strict=False)
    model.eval()
    return model
""",
    """\
def save(model, path):
    torch.save({**{n: p.data for n, p in model.named_parameters()}, **dict(model.named_buffers())}, path)
save(Net(), 'a')
""",
    """\
def main(loader):
    model = Net()
    torch.save(model.state_dict(), 'weights.pt')
    print({n: p.shape for n, p in model.named_parameters()})
""",
    """\
def main(loader):
    model = Net()
    torch.save({n: p for n, p in model.named_parameters() if p.requires_grad}, 'adapter.pt')
""",
    """\
def main(loader):
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    torch.save(dict(model.named_parameters()), 'weights.pt')
""",
    """\
def load(path):
    model = Net()
    weights = torch.load(path)
    for n, p in model.named_parameters():
        p.data.copy_(weights[n])
    for n, b in model.named_buffers():
        b.copy_(weights[n])
    model.eval()
    return model
""",
    """\
def main(loader):
    model = Net()
    torch.save({n: p.grad for n, p in model.named_parameters()}, 'grads.pt')
    torch.save(dict(model.fc.named_parameters()), 'head.pt')
""",
    """\
def load(path):
    model = Net()
    model.load_state_dict(torch.load('base.pt'))
    weights = torch.load(path)
    for n, p in model.named_parameters():
        p.data.copy_(weights[n])
    model.eval()
    return model
""",
    """\
def add_noise(model, path):
    noise = torch.load(path)
    for n, p in model.named_parameters():
        p.data.add_(noise[n])
    model.eval()
add_noise(Net(), 'a')
""",
    """\
def prune(model, keep):
    new = Net(c=len(keep))
    for a, b in zip(model.modules(), new.modules()):
        if isinstance(a, nn.BatchNorm2d):
            b.weight.data = a.weight.data[keep].clone()
            b.bias.data = a.bias.data[keep].clone()
            b.running_mean = a.running_mean[keep].clone()
            b.running_var = a.running_var[keep].clone()
        elif isinstance(a, nn.Conv2d):
            b.weight.data = a.weight.data[keep].clone()
    return new
""",
]
