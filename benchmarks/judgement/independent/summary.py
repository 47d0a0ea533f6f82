import importlib, json, pathlib, collections, sys
H = pathlib.Path(__file__).parent; sys.path.insert(0, str(H)); J = json.load(open(H / "verified.json")); cnt = collections.Counter(); codes = collections.Counter(); bad = []; names = set(); T = collections.defaultdict(list)
for p in sorted(H.glob("situations_*.py")):
    for s in importlib.import_module(p.stem).SITUATIONS:
        assert s.name not in names, s.name
        names.add(s.name); cnt[s.kind] += 1; codes[s.code] += s.kind == "broken"
        for q in "01":
            r = J.get(s.name, {}).get(q)
            if not r or not r["holds"]: bad.append((s.name, q, "missing" if not r else (r.get("given"), r.get("oracle"), r.get("gain_of"), r.get("error"))))
            if r and "make_s" in r: T[s.kind].append(r["make_s"])
for k in [k for k in J if k not in names]: print("stale entry removed", k); J.pop(k)
json.dump(J, open(H / "verified.json", "w"), indent=1) if "--clean" in sys.argv else None
print(dict(cnt)); print(dict(codes)); print(len([c for c in codes if c]), "causes"); [print(b) for b in bad]
import re
listed = set(re.findall(r"[a-z_0-9]+", " ".join(l.split(":")[0] for l in open(H / "CAUSES.md") if l.startswith("-")))); print("codes not in CAUSES:", [c for c in codes if c and c not in listed])
for k, v in T.items(): v.sort(); print(k, "make seconds: median", v[len(v) // 2], "min", v[0], "max", v[-1])
