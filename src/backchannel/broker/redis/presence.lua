-- Keeps who is in which channel, for one node at a time, and what is to be told of it.
-- KEYS: what all keys of presence begin with (of one hash slot).
-- ARGV: verb, node, its fencing number, milliseconds of a lease, milliseconds that a leave waits,
--       the newest number that was told to this node, the number up to which it has done what it was
--       told, "1" where it finds out who has gone; then what the verb needs. Who only looks ("members",
--       "count") says no node, in place of its number the silence that it has waited for, "-" for none,
--       and "0" for the rest.
-- Returns 1, milliseconds until there is something to find out (-1: nothing), what is to be told
--       (number, whether joined, channel, user), and what the verb answers. Or 0: the fencing number is
--       an old one. To who only looks: 1 and the answer; or 0, and the silence that is to be waited for.
local key, verb, node, fence = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local lease, moment = tonumber(ARGV[4]), tonumber(ARGV[5])
local seen, done = tonumber(ARGV[6]), tonumber(ARGV[7])
local at_once = 1000  -- of anything, so that others are not kept waiting
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local nodes, fences, leaving = key .. "nodes", key .. "fences", key .. "leaving"
local given = key .. "given"  -- the newest number that each node was told
local held, stale, due = key .. "held:", key .. "stale:", key .. "due:"

local function tell(joined, channel, user)
    local number = redis.call("INCR", key .. "number")
    redis.call("RPUSH", due .. node, cmsgpack.pack({number, joined, channel, user}))
end

-- Names the nodes that a user is at; nobody's name has a space.
local function spread(there)
    local names = {}
    for of in pairs(there) do
        names[#names + 1] = of
    end
    table.sort(names)
    return table.concat(names, " ")
end

-- Keeps where a user in a channel is, nil for nowhere, and how many users are at the same nodes as
-- they: so it is known at once how many are at dead ones only.
local function put(channel, user, was, there)
    local is = there and spread(there) or ""
    if there then
        redis.call("HSET", key .. "in:" .. channel, user, cmsgpack.pack(there))
    else
        redis.call("HDEL", key .. "in:" .. channel, user)
    end
    if is == was then
        return
    end
    if is ~= "" then
        redis.call("HINCRBY", key .. "at:" .. channel, is, 1)
    end
    if was ~= "" and redis.call("HINCRBY", key .. "at:" .. channel, was, -1) <= 0 then
        redis.call("HDEL", key .. "at:" .. channel, was)
    end
end

-- Takes a node out of what is known of a user in a channel; the last one's leave waits for a while,
-- or is told at once.
local function drop(pair, of, wait)
    local channel, user = unpack(cmsgpack.unpack(pair))
    local packed = redis.call("HGET", key .. "in:" .. channel, user)
    local there = packed and cmsgpack.unpack(packed) or {}
    if not there[of] then
        return
    end
    local was = spread(there)
    there[of] = nil
    if not wait and not next(there) then
        put(channel, user, was, nil)
        tell(false, channel, user)
        return
    end
    put(channel, user, was, there)
    if not next(there) then
        redis.call("ZADD", leaving, now + wait, pair)
    end
end

-- known: the node has announced this user before, to an engine that has lost it since.
local function set(channel, user, devices, known)
    local pair = cmsgpack.pack({channel, user})
    local packed = redis.call("HGET", key .. "in:" .. channel, user)
    redis.call("SREM", stale .. node, pair)
    if devices ~= "" then
        local there = packed and cmsgpack.unpack(packed) or {}
        local was = spread(there)
        there[node] = devices
        put(channel, user, was, there)
        redis.call("SADD", held .. node, pair)
        redis.call("ZREM", leaving, pair)
        if not packed and not known then
            tell(true, channel, user)
        end
        return
    end
    redis.call("SREM", held .. node, pair)
    if not packed and known then  -- the others may have the user, and have not announced it yet
        put(channel, user, "", {})
        redis.call("ZADD", leaving, now + math.max(lease, moment), pair)
    else
        drop(pair, node, moment)
    end
end

-- Tells of those who did not come back within the moment.
local function see_off()
    local gone = redis.call("ZRANGEBYSCORE", leaving, "-inf", now, "LIMIT", 0, at_once)
    for _, pair in ipairs(gone) do
        local channel, user = unpack(cmsgpack.unpack(pair))
        redis.call("ZREM", leaving, pair)
        put(channel, user, "", nil)
        tell(false, channel, user)
    end
end

-- Removes what nodes held whose lease has run out, bit by bit, and takes over what they had to tell.
local function sweep()
    local left = at_once
    for _, other in ipairs(redis.call("ZRANGEBYSCORE", nodes, "-inf", "(" .. now)) do
        redis.call("HDEL", fences, other)
        redis.call("HDEL", given, other)
        for _, packed in ipairs(redis.call("LRANGE", due .. other, 0, -1)) do
            local _, joined, channel, user = unpack(cmsgpack.unpack(packed))
            tell(joined, channel, user)
        end
        redis.call("DEL", due .. other)
        for _, which in ipairs({held, stale}) do
            local some = redis.call("SPOP", which .. other, left)
            left = left - #some
            for _, pair in ipairs(some) do
                drop(pair, other, nil)
            end
        end
        if left == 0 then
            return
        end
        redis.call("ZREM", nodes, other)
    end
end

-- Returns the nodes that are dead and not swept yet, as keys.
local function find_dead()
    local dead = {}
    for _, of in ipairs(redis.call("ZRANGEBYSCORE", nodes, "-inf", "(" .. now)) do
        dead[of] = true
    end
    return dead
end

-- Returns how many users of a channel are at dead nodes only.
local function count_dead(channel, dead)
    local count = 0
    local at = next(dead) and redis.call("HGETALL", key .. "at:" .. channel) or {}
    for i = 1, #at, 2 do
        local is_alive = false
        for of in string.gmatch(at[i], "%S+") do
            is_alive = is_alive or not dead[of]
        end
        count = count + (is_alive and 0 or tonumber(at[i + 1]))
    end
    return count
end

-- Returns the users of a channel, each with what its nodes described.
local function find_members(channel, dead)
    local members = {}
    local found = redis.call("HGETALL", key .. "in:" .. channel)
    for i = 1, #found, 2 do
        local member, there = {found[i]}, cmsgpack.unpack(found[i + 1])
        for of, devices in pairs(there) do
            if not dead[of] then
                member[#member + 1] = devices
            end
        end
        if #member > 1 or not next(there) then
            members[#members + 1] = member
        end
    end
    return members
end

local function find(channel)
    local dead = find_dead()
    if verb == "members" then
        return find_members(channel, dead)
    end
    return redis.call("HLEN", key .. "in:" .. channel) - count_dead(channel, dead)
end

-- ── who only looks ──
-- It changes nothing, and is not heard. Where a lease has run out since a node was heard, its node is
-- dead, or the engine was away: the next node that is heard tells which. Where no node is alive there
-- is nobody, though who was away for a moment is seen off by none.
if node == "" then
    local last = redis.call("GET", key .. "heard") or ""
    if last ~= fence and (last == "" or redis.call("ZCOUNT", nodes, last, "(" .. now) > 0) then
        return {0, last}
    end
    if redis.call("ZCOUNT", nodes, now, "+inf") == 0 then
        return {1, verb == "members" and {} or 0}
    end
    return {1, find(ARGV[9])}
end

-- ── who asks ──
local is_new = verb == "enroll" and ARGV[9] == "0"
if verb ~= "enroll" and redis.call("HGET", fences, node) ~= fence then
    return {0}
end
-- Where nobody was heard for so long that leases ran out by it, the engine was away: nobody's fault.
local last = tonumber(redis.call("GET", key .. "heard") or now)
if not is_new and now - last > lease * 2 / 3 then
    for _, other in ipairs(redis.call("ZRANGEBYSCORE", nodes, last, "+inf")) do
        redis.call("ZADD", nodes, now + lease, other)
    end
end
redis.call("SET", key .. "heard", now)
-- An engine that came back with older data has given this node, or anybody, fewer numbers than it was
-- told. One that gave it none since its lease ran out has forgotten them, and lost nothing.
local is_older = false
if verb == "enroll" then
    local newest = tonumber(redis.call("GET", key .. "number") or 0)
    local had = tonumber(redis.call("HGET", given, node) or seen)
    is_older = newest < seen or had < seen
    if newest < seen then
        redis.call("SET", key .. "number", ARGV[6])
    end
    redis.call("HSET", given, node, ARGV[6])
end
redis.call("ZADD", nodes, now + lease, node)
if ARGV[8] == "1" then
    sweep()
    see_off()
end

-- ── what it wants ──
local answer = {}
if verb == "enroll" then  -- whether it comes back, a name for this run of data; is it older data
    redis.call("SET", key .. "epoch", ARGV[10], "NX")
    answer = {redis.call("INCR", key .. "fence"), redis.call("GET", key .. "epoch"), is_older and 1 or 0}
    redis.call("HSET", fences, node, answer[1])
    redis.call("SUNIONSTORE", stale .. node, stale .. node, held .. node)
    redis.call("DEL", held .. node)
elseif verb == "set" then  -- channel, user, devices, "1" where known; as often as need be
    for i = 9, #ARGV, 4 do
        set(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3] == "1")
    end
elseif verb == "settle" then  -- what was held before and was not announced again
    for _, pair in ipairs(redis.call("SPOP", stale .. node, at_once)) do
        drop(pair, node, moment)
    end
    answer = redis.call("SCARD", stale .. node)
elseif verb == "members" or verb == "count" then  -- channel
    answer = find(ARGV[9])
elseif verb == "bye" then  -- what it leaves behind is for the others, at once
    redis.call("ZADD", nodes, now - 1, node)
end

-- ── what it is told ──
local mine = due .. node
local first = redis.call("LINDEX", mine, 0)
while first and cmsgpack.unpack(first)[1] <= done do
    redis.call("LPOP", mine)
    first = redis.call("LINDEX", mine, 0)
end
local news = {}
for _, packed in ipairs(redis.call("LRANGE", mine, 0, at_once - 1)) do
    if cmsgpack.unpack(packed)[1] > seen then
        news[#news + 1] = packed
    end
end
if #news > 0 then
    redis.call("HSET", given, node, cmsgpack.unpack(news[#news])[1])
end
local wait = -1
for _, set_ in ipairs({nodes, leaving}) do
    local earliest = redis.call("ZRANGE", set_, 0, 0, "WITHSCORES")[2]
    if earliest and (wait < 0 or earliest - now + 1 < wait) then
        wait = math.max(0, earliest - now + 1)
    end
end
return {1, wait, news, answer}
