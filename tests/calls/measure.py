import sys, warnings, collections

warnings.simplefilter("ignore")
from tests.calls import verbs
from tests.calls.outcome import outcome

try:
    from batchnorm.errors import BatchNormError
except Exception:
    raise
from tests.calls import good

for k, v in good.libraries().items():
    sys.modules.setdefault(k, v)
raw = []
silent = []
changed = []
ok = 0
n = 0
noname = []
lines = []
only = sys.argv[1:]
import io, contextlib

for verb in verbs.VERBS:
    if only and verb.name not in only:
        continue
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            verb.call(**{k: v() for k, v in verb.given.items()})
    except Exception as e:
        print("GOOD CALL FAILS", verb.name, type(e).__name__, str(e)[:200])
    for arg, values in verb.kinds.items():
        for label, make in values.items():
            n += 1
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    o = outcome(verb, arg, make)
            except BaseException as e:
                print("HARNESS", verb.name, arg, label, repr(e)[:200])
                continue
            key = f"{verb.name} {arg}: {label}"
            legal = f"{arg}: {label}" in verb.legal
            if o.error is None:
                if not legal:
                    silent.append(key)
                else:
                    ok += 1
                continue
            if legal:
                print("LEGAL FAILS", key, type(o.error).__name__, str(o.error)[:150])
            if not isinstance(o.error, BatchNormError):
                raw.append((key, type(o.error).__name__, str(o.error).splitlines()[0][:110] if str(o.error) else ""))
            else:
                ok += 1
                if arg not in str(o.error):
                    noname.append((key, str(o.error)[:230]))
                if "\n" in str(o.error):
                    lines.append((key, str(o.error)[:230]))
            if o.changed:
                changed.append((key, o.changed[:3]))
print(
    "pairs",
    n,
    "ok",
    ok,
    "raw",
    len(raw),
    "accepted",
    len(silent),
    "changed",
    len(changed),
    "noname",
    len(noname),
    "lines",
    len(lines),
)
for title, l in (("RAW", raw), ("ACCEPTED", silent), ("CHANGED", changed), ("NONAME", noname), ("LINES", lines)):
    print("==", title)
    for x in l:
        print("  ", x)
