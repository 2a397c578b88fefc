-- Redis runs Lua 5.1. `make check` runs luacheck by scripts/check_lua.py, on each operation with the files that it includes.
std = "lua51"
read_globals = {"redis", "cjson", "cmsgpack", "KEYS", "ARGV"}
max_line_length = 128
