"""Usage: verify.py [-s SEEDS] [-m MODULE ...] [-k NAME_PART,...]; updates verified.json"""
import argparse, importlib, json, os, pathlib, sys, time, traceback
os.environ.setdefault("OMP_NUM_THREADS", "1"); sys.dont_write_bytecode = True
import torch
torch.set_num_threads(1)
HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
from pieces4 import evaluate, renew, renew_in_turn


def check(s, seed):
    t, c = time.time(), time.process_time(); d = s.make(seed); r = dict(kind=s.kind, code=s.code, differs=s.differs, inputs_differ=s.inputs_differ, make_s=round(time.time() - t, 2), cpu_s=round(time.process_time() - c, 2)); M, m, T = d["metric"], d["model"], d["test_loader"]; r["n_test"] = sum(len(b[0]) for b in T); E = lambda q, l=T: round(evaluate(q, l, M), 4)
    r["given"] = E(m); tr = list(d["loader"]); r["train_eval_mode"] = E(m, tr[:20]); r["eval_loader"] = E(m, d["eval_loader"]); r["gain_of"] = g = {}
    for n, l, p in (("training", tr, True), ("training_as_is", tr, False), ("evaluation", list(d["eval_loader"]), True)):
        try: g[n] = round(E(renew(m, l, pooled=p)) - r["given"], 4)
        except Exception as e: g[n] = type(e).__name__
    if s.kind != "broken": g["training_layer_by_layer"] = round(E(renew_in_turn(m, tr)) - r["given"], 4)
    if d["oracle"] is not None: r["oracle"] = E(d["oracle"](m))
    num = [v for v in g.values() if not isinstance(v, str)]; best = max([g[n] for n in ("training", "training_as_is", "training_layer_by_layer") if n in g and not isinstance(g[n], str)], default=0.)
    if s.kind == "broken": r["holds"] = r["oracle"] - r["given"] >= .05
    elif s.kind == "healthy": r["holds"] = max(num) < .02
    else: ref = max(r["train_eval_mode"], r.get("oracle", -9)); r["holds"] = ref - r["given"] >= .05 and best < .02
    r["params"] = {k: v if isinstance(v, (int, float, str, bool, type(None))) else str(v) for k, v in d["params"].items()}; r["notes"] = d["notes"]; return r


if __name__ == "__main__":
    a = argparse.ArgumentParser(); a.add_argument("-s", type=int, nargs="*", default=[0]); a.add_argument("-m", nargs="*"); a.add_argument("-k", default=""); a = a.parse_args(); f = HERE / "verified.json"
    for mod in a.m or sorted(p.stem for p in HERE.glob("situations_*.py")):
        for s in importlib.import_module(mod).SITUATIONS:
            if not any(k in s.name for k in a.k.split(",")): continue
            for seed in a.s:
                try: r = check(s, seed)
                except Exception as e: traceback.print_exc(limit=4); r = dict(kind=s.kind, code=s.code, holds=False, error=repr(e))
                r["module"] = mod; print(f"{'ok ' if r['holds'] else 'BAD'} {s.kind[:6]:6} {s.name:46} s{seed} given={r.get('given')} oracle={r.get('oracle')} train={r.get('train_eval_mode')} {r.get('gain_of')} cpu={r.get('cpu_s')}", flush=True)
                J = json.loads(f.read_text()) if f.exists() else {}; J.setdefault(s.name, {})[str(seed)] = r; f.write_text(json.dumps(J, indent=1))
