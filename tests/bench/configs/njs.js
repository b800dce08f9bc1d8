// The gateway's work on /key/update, for njs. Left out beside the gateway: duplicate members, number precision and
// everything else that a parse and a re-serialisation lose; JSON.stringify also changes bytes that nobody asked it to.
import crypto from 'crypto';

function same(a, b) {
    return JSON.stringify(a) === JSON.stringify(b);
}

function sameSet(a, b) {
    return Array.isArray(a) && Array.isArray(b) && same(a.slice().sort(), b.slice().sort());
}

function bothEmpty(a, b) {
    return a !== null && a.length === 0 && (b === null || b.length === 0);
}

const unchanged = {allowed_routes: sameSet, permissions: same, access_group_ids: same, budget_limits: bothEmpty};

async function update(r) {
    let text = r.requestText;
    const dropped = [];
    try {
        const body = JSON.parse(text);
        const guarded = Object.keys(unchanged).filter((name) => name in body);
        if (guarded.length && typeof body.key === 'string') {
            const hash = body.key.startsWith('sk-') ? crypto.createHash('sha256').update(body.key).digest('hex') : body.key;
            const start = Date.now();
            const reply = await r.subrequest('/lookup', {args: `key=${hash}`});
            r.variables.lookup_ms = Date.now() - start;
            r.variables.key_digits = hash.slice(0, 8);
            const found = reply.status === 200 ? JSON.parse(reply.responseText) : {};
            const stored = found.key === hash ? found.info : {};
            guarded.forEach((name) => {
                if (name in stored && unchanged[name](body[name], stored[name])) {
                    delete body[name];
                    dropped.push(name);
                }
            });
            if (dropped.length) {
                text = JSON.stringify(body);
                r.variables.outcome = 'dropped';
                r.variables.dropped = dropped.join(',');
            }
        }
    } catch (e) {
        // not JSON: forward as it came
    }
    const answer = await r.subrequest('/forward', {method: 'POST', body: text});
    for (const name in answer.headersOut) {
        r.headersOut[name] = answer.headersOut[name];
    }
    r.headersOut['x-litellm-sanitizer'] = dropped.length ? `dropped; fields="${dropped.join(',')}"` : 'absent';
    r.return(answer.status, answer.responseBuffer);
}

export default {update};
