"""What Redis does in one step by itself, in Lua: the commands of `redis.py` would be several."""

from __future__ import annotations

# KEYS: leases, expiry, pings. ARGV: instance id, boot id or "", ttl, wall time.
RENEW = """
local lease = redis.call('HGET', KEYS[1], ARGV[1])
local expires_at = redis.call('ZSCORE', KEYS[2], ARGV[1])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
if not lease or not expires_at or tonumber(expires_at) <= now then return 0 end
if ARGV[2] ~= '' and cjson.decode(lease).boot_id ~= ARGV[2] then return 1 end
redis.call('ZADD', KEYS[2], string.format('%.6f', now + ARGV[3]), ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[4])
return 2
"""
# One answer of JSON: redis-py takes long for many small ones. KEYS: cluster, leases, expiry, pings,
# epoch. ARGV: 1 for the leases themselves, 0 for their times alone. Times stay texts, since numbers
# of cjson have 14 digits.
LIST = """
local time = redis.call('TIME')
local times = {}
local pings = {}
local told = redis.call('HGETALL', KEYS[4])
for at = 1, #told, 2 do pings[told[at]] = told[at + 1] end
local expiry = redis.call('ZRANGE', KEYS[3], 0, -1, 'WITHSCORES')
for at = 1, #expiry, 2 do
    times[#times + 1] = {expiry[at], pings[expiry[at]] or '0', expiry[at + 1]}
end
local leases = {}
if ARGV[1] == '1' then leases = redis.call('HVALS', KEYS[2]) end
return cjson.encode({
    redis.call('GET', KEYS[5]) or '', redis.call('HGET', KEYS[1], 'revision') or '0',
    redis.call('HGET', KEYS[1], 'changed_at') or '0', time[1], time[2], times, leases
})
"""
# One step, so that no other server sees leases of before an absence as over, and so that the time
# is not older than the sign of life that it is compared with. KEYS: alive-at, active.
# ARGV: ttl, silence, the prefix of the clusters' expiry.
RESUME = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local alive_at = tonumber(redis.call('GET', KEYS[1]) or now)
redis.call('SET', KEYS[1], string.format('%.6f', now))
if math.abs(now - alive_at) <= tonumber(ARGV[2]) then return 0 end
local renewed = 0
local fresh, over = string.format('%.6f', now + ARGV[1]), string.format('%.6f', now)
for _, cluster in ipairs(redis.call('SMEMBERS', KEYS[2])) do
    local expiry = ARGV[3] .. cluster
    local held = redis.call('ZRANGE', expiry, 0, -1, 'WITHSCORES')
    for at = 1, #held, 2 do
        local expires_at = tonumber(held[at + 1])
        if expires_at > alive_at then
            redis.call('ZADD', expiry, fresh, held[at])
            renewed = renewed + 1
        elseif expires_at > now then
            redis.call('ZADD', expiry, over, held[at])
        end
    end
end
return renewed
"""
