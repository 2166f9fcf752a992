"""What Redis does in one step by itself, in Lua: the commands of `redis.py` would be several."""

from __future__ import annotations

# What ends an absence (see `absence.py`), for those that say that a server lives or judge by time.
# Renewed is what lasted at the last sign of life. ARGV[1] is the prefix of all keys: for each that
# is given apart, redis-py takes some microseconds of every heartbeat.
_ABSENCE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local function end_absence(alive_at, ttl, silence)
    if math.abs(now - alive_at) <= silence then return 0 end
    local renewed = 0
    local fresh, over = string.format('%.6f', now + ttl), string.format('%.6f', now)
    for _, cluster in ipairs(redis.call('SMEMBERS', ARGV[1] .. 'active')) do
        local expiry = ARGV[1] .. 'expiry:' .. cluster
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
end
local function end_absence_by_terms()
    local told = redis.call('MGET', ARGV[1] .. 'alive-at', ARGV[1] .. 'terms')
    if not told[1] or not told[2] then return 0 end
    local ttl, silence = string.match(told[2], '(%S+) (%S+)')
    local alive_at = tonumber(told[1])
    if math.abs(now - alive_at) <= tonumber(silence) then return 0 end
    redis.call('SET', ARGV[1] .. 'alive-at', string.format('%.6f', now))
    return end_absence(alive_at, tonumber(ttl), tonumber(silence))
end
"""
# The time by which a step judges, and how many leases an absence renewed.
# ARGV: the prefix.
NOW = _ABSENCE + "return {time[1], time[2], end_absence_by_terms()}"
# What became of it, and thrice how many leases an absence renewed: one number is read fastest.
# KEYS: leases, expiry, pings. ARGV: the prefix, instance id, boot id or "", ttl, wall time.
RENEW = (
    _ABSENCE
    + """
local renewed = end_absence_by_terms()
local lease = redis.call('HGET', KEYS[1], ARGV[2])
local expires_at = redis.call('ZSCORE', KEYS[2], ARGV[2])
if not lease or not expires_at or tonumber(expires_at) <= now then return 3 * renewed end
if ARGV[3] ~= '' and cjson.decode(lease).boot_id ~= ARGV[3] then return 3 * renewed + 1 end
redis.call('ZADD', KEYS[2], string.format('%.6f', now + ARGV[4]), ARGV[2])
redis.call('HSET', KEYS[3], ARGV[2], ARGV[5])
return 3 * renewed + 2
"""
)
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
# One step, so that the time is not older than the sign of life that it is compared with.
# ARGV: the prefix, ttl, silence.
RESUME = (
    _ABSENCE
    + """
local alive_at = tonumber(redis.call('GET', ARGV[1] .. 'alive-at') or now)
redis.call('SET', ARGV[1] .. 'alive-at', string.format('%.6f', now))
redis.call('SET', ARGV[1] .. 'terms', ARGV[2] .. ' ' .. ARGV[3])
return end_absence(alive_at, tonumber(ARGV[2]), tonumber(ARGV[3]))
"""
)
# A cluster's first key: 0 it has one, 1 too many tries, 2 too many clusters, 3 done. The limits are
# looked at in the same step: of many that come at once each would find room.
# KEYS: the count, the clusters with this key. ARGV: the prefix, cluster id, most clusters, most
# tries, seconds that the count is kept, the key's hash, the key, the audit event, most events.
FOUND = """
local function of_cluster(name) return ARGV[1] .. name .. ':' .. ARGV[2] end
if redis.call('EXISTS', of_cluster('keys')) == 1 then return 0 end
if tonumber(redis.call('GET', KEYS[1]) or 0) >= tonumber(ARGV[4]) then return 1 end
redis.call('INCR', KEYS[1])
redis.call('EXPIRE', KEYS[1], ARGV[5])
if redis.call('SCARD', ARGV[1] .. 'with-keys') >= tonumber(ARGV[3]) then return 2 end
for _, name in ipairs({'cluster', 'leases', 'expiry', 'pings', 'audit'}) do
    redis.call('DEL', of_cluster(name))
end
redis.call('SREM', ARGV[1] .. 'active', ARGV[2])
redis.call('HSET', of_cluster('keys'), ARGV[6], ARGV[7])
redis.call('SADD', KEYS[2], ARGV[2])
redis.call('SADD', ARGV[1] .. 'with-keys', ARGV[2])
redis.call('SADD', ARGV[1] .. 'audited', ARGV[2])
redis.call('XADD', of_cluster('audit'), 'MAXLEN', '~', ARGV[9], '*', 'event', ARGV[8])
return 3
"""
