// A small safetensors reader for the checks.
#pragma once
#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

struct Safetensors {
    std::string header, data;
    explicit Safetensors(const char* path) {
        std::ifstream f(path, std::ios::binary);
        uint64_t n = 0;
        f.read((char*)&n, 8);
        header.resize(n); f.read(&header[0], n);
        header.erase(std::remove(header.begin(), header.end(), '\\'), header.end());
        std::stringstream s; s << f.rdbuf(); data = s.str();
    }
    size_t find(const std::string& name) const { return header.find("\"" + name + "\":{\"dtype\""); }
    bool has(const std::string& name) const { return find(name) != std::string::npos; }
    std::vector<long> list(const std::string& name, const char* key) const {
        size_t at = find(name);
        if (at == std::string::npos) { fprintf(stderr, "no %s\n", name.c_str()); exit(1); }
        at = header.find('[', header.find(key, at)) + 1;
        std::vector<long> r;
        while (header[at - 1] != ']') { size_t used; r.push_back(std::stol(header.substr(at, 24), &used)); at += used + 1; }
        return r;
    }
    std::vector<long> shape(const std::string& name) const { return list(name, "\"shape\""); }
    template <class T> std::vector<T> get(const std::string& name) const {
        auto o = list(name, "\"data_offsets\"");
        std::vector<T> r((o[1] - o[0]) / sizeof(T));
        memcpy(r.data(), data.data() + o[0], o[1] - o[0]);
        return r;
    }
    std::vector<uint16_t> bits16(const std::string& n) const { return get<uint16_t>(n); }
    std::vector<int> i32(const std::string& n) const { return get<int>(n); }
    std::vector<float> f32(const std::string& n) const { return get<float>(n); }
    int parameter(const std::string& name, const std::string& key) const {       // of a case in the metadata
        size_t at = header.find("\"name\": \"" + name + "\"");
        if (at == std::string::npos) at = header.find("\"name\":\"" + name + "\"");
        at = header.find("\"" + key + "\"", at);
        return std::stoi(header.substr(header.find(':', at) + 1, 16));
    }
};
